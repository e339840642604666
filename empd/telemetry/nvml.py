"""NVML as values: every reading is a number or UNKNOWN, and what a device's error means is a flag.

The only module that loads the vendor's library. A call may hang in the driver for as long as it likes: whoever
uses this runs in a process that may be killed.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import Any

import pynvml

from empd.device import Device
from empd.errors import EmpdError
from empd.memory.board import UNKNOWN, Gauges

_log = logging.getLogger("empd.telemetry")
_INT64_MAX = (1 << 63) - 1
_UINT32_NOT_AVAILABLE = (1 << 32) - 1
_EVENTS_MAX = 64

_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_GPU_NOT_FOUND, pynvml.NVML_ERROR_NOT_FOUND})
# The library has to be initialised again: the driver was unloaded, replaced or reset under it.
_SESSION_OVER = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)


class Flag(enum.IntFlag):
    """The bits of `Gauges.flags`."""

    LOST = 1  # the GPU has fallen off the bus, or NVML does not know it
    RESET_REQUIRED = 2
    UNREADABLE = 4  # nothing could be read: no driver, no permission, or the library has gone


class NoNvml(EmpdError):
    """NVML cannot be used on this box; the text says why."""


class Nvml:
    """One session with the library. Not for use from two threads."""

    def __init__(self) -> None:
        """Raises NoNvml."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NoNvml(f"NVML: {error} (is the NVIDIA driver installed and loaded?)") from None
        self._handles: dict[str, Any] = {}
        self._xids: dict[str, int] = {}
        self._watched: set[str] = set()
        self._events: Any = None
        self.is_over = False
        """True once the library has to be opened anew."""

    def devices(self) -> list[Device]:
        """Every GPU that answers; one that does not is logged and left out. Raises NoNvml."""
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise NoNvml(f"NVML cannot count the GPUs: {error}") from None
        found = []
        for index in range(count):
            try:
                found.append(_facts(index))
            except pynvml.NVMLError as error:
                _log.warning("GPU %d is left out: %s", index, error)
        return found

    def read(self, uuid: str, at_mono_ns: int) -> Gauges:
        """How a GPU fares. Never raises for what the device or the driver does."""
        try:
            handle = self._handle(uuid)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError as error:
            self._handles.pop(uuid, None)
            return Gauges(at_mono_ns=at_mono_ns, xid=self._xids.get(uuid, 0), flags=self._flag(error, Flag.UNREADABLE))
        flags = Flag(0)

        def ask(call: Callable[..., Any], *arguments: int) -> int:
            nonlocal flags
            try:
                return _number(call(handle, *arguments))
            except pynvml.NVMLError as error:
                flags |= self._flag(error, Flag(0))
                return UNKNOWN

        values = {
            "utilisation_percent": ask(_gpu_percent),
            "temperature_c": ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            "power_mw": ask(pynvml.nvmlDeviceGetPowerUsage),
            "energy_mj": ask(pynvml.nvmlDeviceGetTotalEnergyConsumption),
            "throttle_reasons": max(0, ask(_throttle_reasons)),
            "ecc_errors": ask(
                pynvml.nvmlDeviceGetTotalEccErrors, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            ),
        }
        return Gauges(
            at_mono_ns=at_mono_ns,
            memory_used_bytes=_number(memory.used),
            memory_total_bytes=_number(memory.total),
            xid=self._xids.get(uuid, 0),
            flags=flags,
            **values,
        )

    def processes(self, uuid: str) -> dict[int, int]:
        """Pid → bytes of this GPU's memory, as far as the driver tells; empty where it does not."""
        try:
            found = _running_processes(self._handle(uuid))
        except pynvml.NVMLError as error:
            self._flag(error, Flag(0))
            return {}
        return {each.pid: _number(each.usedGpuMemory) for each in found if each.usedGpuMemory is not None}

    def collect_xids(self) -> None:
        """Takes the critical errors that GPUs reported since the last call; `read` shows the last of each."""
        for _ in range(_EVENTS_MAX if self._events else 0):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                self._xids[pynvml.nvmlDeviceGetUUID(event.device)] = _number(event.eventData)
            except pynvml.NVMLError:
                return  # a time-out: there are no more; or the device is gone, which `read` will say

    def close(self) -> None:
        """Ends the session. Closing twice is fine."""
        if self._events is not None:
            _quietly(pynvml.nvmlEventSetFree, self._events)
            self._events = None
        if not self.is_over:
            self.is_over = True
            _quietly(pynvml.nvmlShutdown)

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._watch(uuid, handle)
            self._handles[uuid] = handle
        return self._handles[uuid]

    def _watch(self, uuid: str, handle: Any) -> None:
        """Asks for a GPU's Xid errors, where the device can report them."""
        if uuid in self._watched:
            return
        self._watched.add(uuid)
        try:
            self._events = self._events or pynvml.nvmlEventSetCreate()
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)
        except pynvml.NVMLError as error:
            _log.info("GPU %s reports no Xid events: %s", uuid, error)

    def _flag(self, error: Any, otherwise: Flag) -> Flag:
        if error.value in _LOST:
            return Flag.LOST
        if error.value == pynvml.NVML_ERROR_RESET_REQUIRED:
            return Flag.RESET_REQUIRED
        if error.value in _SESSION_OVER:
            self.is_over = True
            return Flag.UNREADABLE
        return otherwise


def _facts(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        total_bytes = _number(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError_NotSupported:
        total_bytes = 0  # boards whose GPU shares the host's memory have none of their own to report
    return Device(index, pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle), max(0, total_bytes))


def _number(value: int) -> int:
    """A reading as the board can hold it; NVML's "not available" patterns become UNKNOWN."""
    return UNKNOWN if value > _INT64_MAX or value == _UINT32_NOT_AVAILABLE else int(value)


def _gpu_percent(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)


def _throttle_reasons(handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:  # drivers before 535 know it by its former name
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _running_processes(handle: Any) -> list[Any]:
    # By its number: what the binding calls without one raises no NVMLError where the driver is older.
    try:
        found: list[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except pynvml.NVMLError_FunctionNotFound:  # drivers before 510
        found = pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)
    return found


def _quietly(call: Callable[..., Any], *arguments: Any) -> None:
    try:
        call(*arguments)
    except pynvml.NVMLError as error:
        _log.debug("closing NVML: %s", error)
