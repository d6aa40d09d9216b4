"""Training by the owner's own script: a Trainer of transformers or TRL, or a function, as a client.

:func:`federate` makes a Trainer the agent of its owner's device, :func:`simulate` runs a whole federation of
Trainers on this machine, and :func:`resume` goes on with it; :class:`headwater.hf.function.LocalTraining`
does so for a function. All end in :class:`headwater.training.script.ScriptTrainer`: there is no second path
to the server.
"""

from headwater.hf.trainer import federate, resume, simulate

__all__ = ["federate", "resume", "simulate"]
