"""Secure aggregation: a server learns the sum of its clients' vectors and none of them.

SecAgg+ (Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, ePrint 2020/704) over the masks of Bonawitz et al.
2017 (CCS), against a server that lies. Entry points:
:class:`~headwater.security.secagg.client.MaskingClient`,
:class:`~headwater.security.secagg.server.MaskingServer`, and what both are told,
:class:`~headwater.security.secagg.group.SumRound`. Nothing here does I/O or knows a clock.
"""
