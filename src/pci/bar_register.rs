//! One base address register, as the guest has written it.
//!
//! To learn a BAR's size, a guest writes ones to it and reads back which of them stay. Some guests do so while the function
//! decodes the BAR, a half at a time, and in either order. What such a write leaves in the register reads like an address,
//! most of all in the other half's company, so the register keeps the bits as they were written, below the size too.

use super::regs::{BAR_64, BAR_IO, BAR_PREFETCHABLE, ROM_ENABLE};

/// What a base address register is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarType {
    /// I/O ports.
    Io,
    /// Memory, 32 bits wide.
    Memory32,
    /// Memory, 64 bits wide: two registers.
    Memory64,
    /// The expansion ROM, with an enable bit of its own.
    Rom,
}

impl BarType {
    /// True for memory, which PCI_COMMAND.MEM enables.
    pub fn is_memory(self) -> bool {
        self != Self::Io
    }

    /// The register's lowest bits, which are no part of an address.
    const fn flags(self) -> u32 {
        match self {
            Self::Io => 0b11,
            Self::Memory32 | Self::Memory64 => 0b1111,
            Self::Rom => 0x7ff,
        }
    }

    /// Of a register's lowest bits.
    pub(super) const fn of(kind: u32) -> Self {
        match (kind & BAR_IO != 0, kind & BAR_64 != 0) {
            (true, _) => Self::Io,
            (false, true) => Self::Memory64,
            (false, false) => Self::Memory32,
        }
    }
}

/// A base address register (two, for a BAR that is 64 bits wide), as last written.
///
/// ```
/// use revocable_mmio::pci::{BarRegister, BarType};
///
/// let mut bar = BarRegister::new(BarType::Memory64, 0x4000);
/// assert!(bar.kind().is_memory());
/// assert_eq!(bar.address(), None, "no guest has written it");
/// bar.write(0, &0xe000_0004_u32.to_le_bytes());
/// bar.write(4, &1_u32.to_le_bytes());
/// assert_eq!((bar.address(), bar.size()), (Some(0x1_e000_0000), 0x4000));
///
/// bar.write(4, &[0xff; 4]); // a size probe of the high half
/// assert!(bar.is_sizing() && !bar.is_settled());
/// assert_eq!((bar.address(), bar.written()), (None, 0xffff_ffff_e000_0004));
///
/// let mut rom = BarRegister::new(BarType::Rom, 0x800);
/// rom.write(0, &0xf000_0001_u32.to_le_bytes());
/// assert!(rom.is_enabled());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRegister {
    kind: BarType,
    /// A power of two.
    size: u64,
    /// Both halves as they were written, below the size too.
    written: u64,
    /// The bytes that were written since a half was last complete: for a half that is being written in pieces.
    pieces: u8,
}

impl BarRegister {
    /// A register that holds 0, of a BAR of `size` bytes or ports. A size that is no power of two counts as the next one
    /// that is.
    pub const fn new(kind: BarType, size: u64) -> Self {
        let size = match size.checked_next_power_of_two() {
            Some(size) => size,
            None => 1 << 63,
        };
        Self { kind, size, written: 0, pieces: 0 }
    }

    /// What it is for.
    pub const fn kind(&self) -> BarType {
        self.kind
    }

    /// The BAR's size, in bytes or ports.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// A write to the register: `bytes` from byte `at` on, 0 to 3 in the low half, 4 to 7 in the high one. They are the bytes
    /// as the guest writes them, not as they read back. Bytes beyond the register are ignored.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let mut written = self.written.to_le_bytes();
        let end = if self.kind == BarType::Memory64 { 8 } else { 4 };
        for (at, byte) in (at..end).zip(bytes) {
            written[at] = *byte;
            self.pieces |= 1 << at;
        }
        self.written = u64::from_le_bytes(written);
        for half in [0x0f, 0xf0] {
            if self.pieces & half == half {
                self.pieces &= !half;
            }
        }
    }

    /// True if each half was last written as a whole (at once or in pieces), and none is being [sized](Self::is_sizing). As
    /// long as this is false, a BAR that is decoded stays where it is.
    pub const fn is_settled(&self) -> bool {
        self.pieces == 0 && !self.is_sizing()
    }

    /// As [`written`](Self::written) says, and the bytes of a half that is being written in pieces.
    pub(super) const fn saved(&self) -> (u64, u8) {
        (self.written, self.pieces)
    }

    /// The same register with what was saved, if it can hold that.
    pub(super) fn with(self, written: u64, pieces: u8) -> Option<Self> {
        let bytes = if self.kind == BarType::Memory64 { 8 } else { 4 };
        let whole = |half: u8| pieces & half == half;
        let good = written.checked_shr(8 * bytes).unwrap_or(0) == 0
            && u32::from(pieces).checked_shr(bytes).unwrap_or(0) == 0
            && !whole(0x0f)
            && !whole(0xf0);
        good.then_some(Self { written, pieces, ..self })
    }

    /// Both halves, as last written.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// True if a half holds the ones of a size probe (all bits above the flags), which is no address.
    #[expect(clippy::cast_possible_truncation, reason = "takes the halves apart")]
    pub const fn is_sizing(&self) -> bool {
        let (low, high) = (self.written as u32, (self.written >> 32) as u32);
        low | self.kind.flags() == u32::MAX || high == u32::MAX
    }

    /// The address, in memory or I/O space. `None` if the register holds a size probe, if it holds 0 (which no guest
    /// assigns, and every register holds before the first does), or if the BAR would not fit below the end of its space.
    pub const fn address(&self) -> Option<u64> {
        let address = self.written & !(self.size - 1) & !(self.kind.flags() as u64);
        let last = address.checked_add(self.size - 1);
        let last_of_space = if matches!(self.kind, BarType::Memory64) { u64::MAX } else { u32::MAX as u64 };
        match last {
            Some(last) if address != 0 && last <= last_of_space && !self.is_sizing() => Some(address),
            _ => None,
        }
    }

    /// True if the register's own enable bit, which only a ROM has, is set.
    pub const fn is_enabled(&self) -> bool {
        !matches!(self.kind, BarType::Rom) || self.written & ROM_ENABLE as u64 != 0
    }
}

const _: () = assert!(BAR_IO | BAR_64 | BAR_PREFETCHABLE <= BarType::Memory64.flags(), "flags are no address bits");
