"""Simulated devices and their time: what ``[simulation.devices]`` asks for.

:mod:`.fleet` gives every client a device, :mod:`.online` says when it is there, :mod:`.costs` what its task
takes. :class:`.grid.DeviceGrid` delivers replies when they would have come, on :class:`.clock.VirtualClock`.
Times in here are whole microseconds, so that no sum hangs on its order.
"""
