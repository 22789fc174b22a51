"""Emulator of Tencent Cloud KMS: its HTTP API on loopback, for trials, offline work and tests.

Tests against it use the real SDK and real HTTP: signatures are checked in full, and keys have the states,
limits and error codes of the service. It protects nothing: it uses unencrypted HTTP, and its master keys are
stored unencrypted in memory or in a file.
"""

from kmsdata.emulator.faults import Fault
from kmsdata.emulator.server import Emulator, Request

__all__ = ["Emulator", "Fault", "Request"]
