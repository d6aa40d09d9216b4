"""Training by the owner's own script: a Trainer of transformers or TRL, or a function, as a client.

:func:`federate` makes a Trainer the agent of its owner's device, :func:`simulate` runs a whole federation of
Trainers on this machine; :class:`headwater.hf.function.LocalTraining` does both for a function. All end in
:class:`headwater.training.script.ScriptTrainer`: no second path to the server.
"""

from headwater.hf.trainer import federate, simulate

__all__ = ["federate", "simulate"]
