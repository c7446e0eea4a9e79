//! Offsets and bits of the registers that the model knows, with the names of the PCI specification.

use std::ops::Range;

pub(super) const VENDOR_ID: usize = 0x00;
pub(super) const DEVICE_ID: usize = 0x02;
pub(super) const COMMAND: usize = 0x04;
pub(super) const STATUS: usize = 0x06;
pub(super) const REVISION_ID: usize = 0x08;
pub(super) const CLASS_CODE: usize = 0x09;
pub(super) const CACHE_LINE_SIZE: usize = 0x0c;
pub(super) const LATENCY_TIMER: usize = 0x0d;
pub(super) const BAR0: usize = 0x10;
pub(super) const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
pub(super) const SUBSYSTEM_ID: usize = 0x2e;
pub(super) const ROM_ADDRESS: usize = 0x30;
pub(super) const CAPABILITIES: usize = 0x34;
pub(super) const INTERRUPT_LINE: usize = 0x3c;
pub(super) const INTERRUPT_PIN: usize = 0x3d;
/// The end of the header, from which on capabilities may be placed.
pub(super) const HEADER_END: usize = 0x40;

/// COMMAND: the device decodes accesses to its I/O ports.
pub(super) const COMMAND_IO: u16 = 1 << 0;
/// COMMAND: the device decodes accesses to its memory BARs.
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
/// COMMAND: the device may be a bus master, which is what DMA is.
pub(super) const COMMAND_MASTER: u16 = 1 << 2;
/// COMMAND: SERR# is enabled.
pub(super) const COMMAND_SERR: u16 = 1 << 8;
/// COMMAND: INTx is disabled.
pub(super) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// COMMAND: the writable bits. The rest are hardwired to 0 in PCI Express devices.
pub(super) const COMMAND_WRITABLE: u16 =
    COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_SERR | COMMAND_INTX_DISABLE;
/// STATUS: there is a list of capabilities.
pub(super) const STATUS_CAPABILITIES: u16 = 1 << 4;

/// BAR: I/O ports, not memory.
pub(super) const BAR_IO: u32 = 1;
/// BAR: memory, 64 bits wide.
pub(super) const BAR_64: u32 = 1 << 2;
/// BAR: memory, prefetchable.
pub(super) const BAR_PREFETCHABLE: u32 = 1 << 3;
/// ROM BAR: decoded.
pub(super) const ROM_ENABLE: u32 = 1;

pub(super) const CAP_POWER: u8 = 0x01;
/// Power management: capabilities.
pub(super) const PM_PMC: usize = 2;
/// Power management: control and status.
pub(super) const PM_CTRL: usize = 4;
pub(super) const PM_LEN: usize = 8;
/// PMCSR: the power state.
pub(super) const PM_CTRL_STATE: u8 = 0b11;
/// PMC: version 3; D1 and D2 are supported.
pub(super) const PMC_VERSION: u16 = 3;
pub(super) const PMC_D1: u16 = 1 << 9;
pub(super) const PMC_D2: u16 = 1 << 10;

pub(super) const CAP_EXPRESS: u8 = 0x10;
pub(super) const EXP_FLAGS: usize = 2;
/// PCI Express: the version of the capability.
pub(super) const EXP_VERSION: u16 = 2;
pub(super) const EXP_DEVCAP: usize = 4;
pub(super) const EXP_DEVCTL: usize = 8;
pub(super) const EXP_LEN: usize = 0x3c;
/// PCI Express: what every version has, to device status.
pub(super) const EXP_DEVICE_LEN: usize = 12;
/// Device capabilities: the function can be reset on its own.
pub(super) const EXP_DEVCAP_FLR: u32 = 1 << 28;
/// Device control: reset the function now; reads as 0.
pub(super) const EXP_DEVCTL_FLR: u16 = 1 << 15;
/// Device control: all bits except FLR, which is acted on, and phantom functions, of which there are none.
pub(super) const EXP_DEVCTL_WRITABLE: u16 = !(EXP_DEVCTL_FLR | 1 << 9);

pub(super) const CAP_ADVANCED: u8 = 0x13;
/// Advanced Features: the capability's length, and then what it can do.
pub(super) const AF_LENGTH: usize = 2;
/// Advanced Features: the function can be reset on its own, and says whether transactions are pending.
pub(super) const AF_CAP_TP_FLR: u8 = 0b11;
/// Advanced Features: control.
pub(super) const AF_CTRL: usize = 4;
/// Advanced Features, control: reset the function now; reads as 0.
pub(super) const AF_CTRL_FLR: u8 = 1;
pub(super) const AF_LEN: usize = 6;

/// True if an access of `len` bytes at `at` touches the byte at `register`.
pub(super) fn covers(at: usize, len: usize, register: usize) -> bool {
    Range { start: at, end: at + len }.contains(&register)
}

/// Power states, as PMCSR has them.
pub(super) const D0: u8 = 0;
pub(super) const D3HOT: u8 = 3;
