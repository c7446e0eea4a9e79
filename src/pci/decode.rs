//! What a function decodes, and where: from its registers alone.
//!
//! [`PciDevice`](super::PciDevice) uses this for its own configuration space. A monitor that has a configuration space of
//! its own can use it in the same way: it hands the registers in, and gets the steps out.
//!
//! ```
//! use revocable_mmio::pci::{BarRegister, BarType, Decode, Decoder, MemoryStep};
//!
//! let mut bar = BarRegister::new(BarType::Memory64, 0x4000);
//! let mut decoder = Decoder::default();
//! let mut change = |command: u16, bar: BarRegister| {
//!     let steps = decoder.steps(&Decode { command, power_state: 0, bars: [Some(bar), None, None, None, None, None, None] });
//!     if steps.memory == MemoryStep::Revoke { /* Region::disable */ }
//!     for place in steps.leave() { /* the memory is gone: take the memslot out, at place.address */ }
//!     for place in steps.enter() { /* before the memory comes back: put it in; if that fails, Decoder::refuse */ }
//!     if steps.memory == MemoryStep::Restore { /* Region::enable */ }
//!     decoder.take(&steps);
//!     (steps.leave().count(), steps.enter().map(|place| place.address).next())
//! };
//! bar.write(0, &0xe000_0004_u32.to_le_bytes());
//! assert_eq!(change(0, bar), (0, None), "not decoded yet");
//! assert_eq!(change(2, bar), (0, Some(0xe000_0000)));
//! // A size probe of the high half, with memory on: nothing moves.
//! bar.write(4, &[0xff; 4]);
//! assert_eq!(change(2, bar), (0, None));
//! bar.write(4, &[1, 0, 0, 0]);
//! assert_eq!(change(2, bar), (1, Some(0x1_e000_0000)), "and this is a move");
//! ```

use super::bar_register::{BarRegister, BarType};
use super::regs::{COMMAND_IO, COMMAND_MEMORY, D3HOT};
use super::space::Space;
use std::fmt;

/// The BARs 0 to 5, and the ROM.
pub(super) const SLOTS: usize = 7;
pub(super) const ROM_SLOT: usize = 6;

/// The registers of a function that decide what it decodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decode {
    /// PCI_COMMAND. A virtual function's memory bit counts as set: pass it so.
    pub command: u16,
    /// The power state of PMCSR, 0 (D0) to 3 (D3hot). Nothing is decoded in D3hot.
    pub power_state: u8,
    /// BARs 0 to 5, then the ROM. The second index of a BAR that is 64 bits wide is `None`.
    pub bars: [Option<BarRegister>; SLOTS],
}

/// Where a BAR is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct BarPlace {
    /// Which one.
    pub space: Space,
    /// Memory or I/O.
    pub kind: BarType,
    /// The first guest physical address, or the first port.
    pub address: u64,
    /// In bytes or ports: a power of two, and `address` is a multiple of it.
    pub size: u64,
}

impl fmt::Display for BarPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:#x} bytes at {:#x}", self.space, self.size, self.address)
    }
}

/// What happens to all memory BARs (and the ROM) as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryStep {
    /// It stays as it is.
    Stay,
    /// The function no longer decodes memory: it is taken away, before any place is left.
    Revoke,
    /// The function decodes memory again: it is given back, after all places were entered.
    Restore,
}

type Places = [Option<BarPlace>; SLOTS];

/// What a function decodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Decoded {
    memory: bool,
    places: Places,
}

/// Follows the registers of a function. Its only state is what the function decodes now.
///
/// ```
/// use revocable_mmio::pci::{BarPlace, BarRegister, BarType, Decode, Decoder, MemoryStep, Space, Steps};
///
/// let mut bar = BarRegister::new(BarType::Memory32, 0x4000);
/// bar.write(0, &0xe000_0000_u32.to_le_bytes());
/// let mut registers = Decode { command: 2, ..Decode::default() };
/// registers.bars[0] = Some(bar);
///
/// let mut decoder = Decoder::default();
/// let steps: Steps = decoder.steps(&registers);
/// assert!(steps.memory == MemoryStep::Restore && steps.decodes_memory() && steps.leave().next().is_none());
/// let refused: Vec<BarPlace> = steps.enter().filter(|place| place.address < 0xd000_0000).collect();
/// decoder.take(&steps); // done
/// refused.iter().for_each(|place| decoder.refuse(place.space));
///
/// assert_eq!(decoder.place(Space::Bar(0)).map(|place| place.address), Some(0xe000_0000));
/// assert!(decoder.steps(&registers).is_nothing());
///
/// registers.power_state = 3; // D3hot
/// let steps = decoder.steps(&registers);
/// assert_eq!((steps.memory, steps.leave().count()), (MemoryStep::Revoke, 1));
/// decoder.take(&steps);
/// assert!(!decoder.decodes_memory() && decoder.places().next().is_none());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    now: Decoded,
}

/// What follows from a change of registers, to be done in this order: revoke, leave, enter, restore.
///
/// All places are left before any is entered, so BARs that change places with each other do not collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Steps {
    /// For all memory BARs as one.
    pub memory: MemoryStep,
    leave: Places,
    enter: Places,
    after: Decoded,
}

impl Steps {
    /// The places at which BARs are no longer decoded.
    pub fn leave(&self) -> impl DoubleEndedIterator<Item = BarPlace> {
        self.leave.into_iter().flatten()
    }

    /// The places at which BARs are decoded from now on.
    pub fn enter(&self) -> impl DoubleEndedIterator<Item = BarPlace> {
        self.enter.into_iter().flatten()
    }

    /// True if there is nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.memory == MemoryStep::Stay && self.leave == self.enter && self.leave().next().is_none()
    }

    /// True if the function decodes memory afterwards.
    pub fn decodes_memory(&self) -> bool {
        self.after.memory
    }
}

impl Decoder {
    /// What follows from these registers. Nothing is decoded before the first.
    ///
    /// A BAR that is decoded stays where it is as long as its register is not [settled](BarRegister::is_settled). If decoding begins with a size probe in the register, the BAR is decoded nowhere.
    pub fn steps(&self, registers: &Decode) -> Steps {
        let decodes = |bit: u16| registers.power_state < D3HOT && registers.command & bit != 0;
        let after = Decoded {
            memory: decodes(COMMAND_MEMORY),
            places: std::array::from_fn(|slot| {
                let register = registers.bars[slot].as_ref()?;
                let bit = if register.kind().is_memory() { COMMAND_MEMORY } else { COMMAND_IO };
                let now = self.now.places[slot];
                match decodes(bit) {
                    false => None,
                    true if now.is_some() && !register.is_settled() => now,
                    true if !register.is_enabled() => None,
                    true => register.address().map(|address| BarPlace {
                        space: space_of(slot),
                        kind: register.kind(),
                        address,
                        size: register.size(),
                    }),
                }
            }),
        };
        let moved =
            |from: &Places, to: &Places| std::array::from_fn(|slot| from[slot].filter(|_| from[slot] != to[slot]));
        Steps {
            memory: match (self.now.memory, after.memory) {
                (true, false) => MemoryStep::Revoke,
                (false, true) => MemoryStep::Restore,
                _ => MemoryStep::Stay,
            },
            leave: moved(&self.now.places, &after.places),
            enter: moved(&after.places, &self.now.places),
            after,
        }
    }

    /// The steps were done.
    pub fn take(&mut self, steps: &Steps) {
        self.now = steps.after;
    }

    /// A place could not be entered: the BAR is decoded nowhere. The next [`steps`](Self::steps) try again.
    pub fn refuse(&mut self, space: Space) {
        if let Some(place) = slot_of(space).and_then(|slot| self.now.places.get_mut(slot)) {
            *place = None;
        }
    }

    /// Where a BAR is decoded now.
    pub fn place(&self, space: Space) -> Option<BarPlace> {
        slot_of(space).and_then(|slot| *self.now.places.get(slot)?)
    }

    /// Every place at which a BAR is decoded now.
    pub fn places(&self) -> impl DoubleEndedIterator<Item = BarPlace> {
        self.now.places.into_iter().flatten()
    }

    /// True if the function decodes memory.
    pub fn decodes_memory(&self) -> bool {
        self.now.memory
    }
}

pub(super) fn space_of(slot: usize) -> Space {
    if slot == ROM_SLOT { Space::Rom } else { Space::Bar(slot) }
}

pub(super) fn slot_of(space: Space) -> Option<usize> {
    match space {
        Space::Bar(index) => Some(index).filter(|index| *index < ROM_SLOT),
        Space::Rom => Some(ROM_SLOT),
        Space::Config => None,
    }
}
