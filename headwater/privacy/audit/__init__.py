"""What attacks get, as numbers that hold: evidence beside ε, never in place of it.

``membership.Membership`` measures guesses of what was trained on, ``lira`` makes the strongest known ones of
shadow runs, ``canaries.audit_canaries`` bounds ε from below by one run, and ``span`` reads inputs out of LoRA
gradients. NumPy alone; who trains what is the caller's.
"""
