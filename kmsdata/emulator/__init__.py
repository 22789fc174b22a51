"""Tencent Cloud KMS on one's own machine: its HTTP API on loopback, for trying, offline work and tests.

What is tested against it is tested against the real SDK and real HTTP: signatures are checked in full, and
keys have the states, limits and error codes of the service. It protects nothing: it speaks plain http, and
its master keys lie in memory or in a file.
"""

from kmsdata.emulator.faults import Fault
from kmsdata.emulator.server import Emulator, Request

__all__ = ["Emulator", "Fault", "Request"]
