//! Configuration space: bytes, which of their bits can be written, and what they make the device decode. The effects of a
//! write on memory are in the files that are named after them.

use super::bar_register::{BarRegister, BarType};
use super::decode::{Decode, Decoder, ROM_SLOT, SLOTS, Steps, space_of};
use super::error::PciError;
use super::regs::*;
use super::saved::{CORRUPT, DeviceState, SavedBar};
use std::ops::Range;

#[cfg(all(test, not(revocable_model)))]
mod tests;

/// The configuration space of PCI, or of PCI Express.
#[derive(Clone, Debug)]
pub(super) struct ConfigSpace {
    bytes: Box<[u8]>,
    writable: Box<[u8]>,
    /// The BARs and the ROM, as they were last written.
    bars: [Option<BarRegister>; SLOTS],
    /// What is decoded: the registers may be ahead of it while a change is under way.
    pub(super) decoded: Decoder,
    /// The offset of the power-management capability.
    pub(super) power: Option<usize>,
    /// What resets the function when it is set: by PCI Express, by Advanced Features.
    pub(super) reset_bits: [Option<ResetBit>; 2],
    /// There is a real device, which gets every write too.
    pub(super) is_real: bool,
    /// The writes that it has yet to get.
    pub(super) untold: Vec<Told>,
    /// How many bytes of the write that a thread of the device's makes the registers have already.
    pub(super) made_of_begun: usize,
}

/// A bit that resets the function when it is set, and reads as 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResetBit {
    /// The byte.
    pub(super) at: usize,
    pub(super) bit: u8,
}

/// A write that the real device gets.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) at: usize,
    pub(super) bytes: Vec<u8>,
}

/// The next piece of a transfer at `at`: aligned, so that no piece ever touches COMMAND together with its neighbours
/// at an odd place (`vfio_config_do_rw` chops them in the same way).
pub(super) fn piece(at: usize, left: usize) -> usize {
    match (left, at % 4) {
        (4.., 0) => 4,
        (2.., 0 | 2) => 2,
        _ => 1,
    }
}

impl ConfigSpace {
    pub(super) fn new(size: usize) -> Self {
        let mut config = Self {
            bytes: vec![0; size].into(),
            writable: vec![0; size].into(),
            bars: [None; SLOTS],
            decoded: Decoder::default(),
            power: None,
            reset_bits: [None; 2],
            is_real: false,
            untold: Vec::new(),
            made_of_begun: 0,
        };
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(LATENCY_TIMER, &[0xff]);
        config
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Sets bytes, as the device itself does.
    pub(super) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Makes these bits writable.
    pub(super) fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..][..mask.len()].copy_from_slice(mask);
    }

    /// Sizing is all in the mask: address bits below the size read as type bits, whatever is written.
    pub(super) fn set_bar(&mut self, index: usize, size: u64, kind: u32, address: u64) {
        let at = bar_at(index).start;
        self.bars[index] = Some(BarRegister::new(BarType::of(kind), size));
        let mask = !(size - 1);
        let register = (address | u64::from(kind)).to_le_bytes();
        self.set(at, &register[..4]);
        self.allow(at, &mask.to_le_bytes()[..4]);
        if kind & (BAR_IO | BAR_64) == BAR_64 {
            self.set(at + 4, &register[4..]);
            self.allow(at + 4, &mask.to_le_bytes()[4..]);
        }
    }

    pub(super) fn set_rom(&mut self, size: u64) {
        self.bars[ROM_SLOT] = Some(BarRegister::new(BarType::Rom, size));
        let mask = (!(size - 1) | u64::from(ROM_ENABLE)).to_le_bytes();
        self.allow(ROM_ADDRESS, &mask[..4]);
    }

    pub(super) fn read(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[at..][..into.len()]);
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The byte at `register` after this write.
    pub(super) fn preview(&self, at: usize, bytes: &[u8], register: usize) -> u8 {
        let old = self.bytes[register];
        let mask = self.writable[register];
        match register.checked_sub(at).and_then(|i| bytes.get(i)) {
            Some(new) => old & !mask | new & mask,
            None => old,
        }
    }

    /// A guest's write: only writable bits change. A power state that the device does not have, or cannot reach from its
    /// present one, is ignored (`pci_set_power_state` fails, and the driver does not report it).
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        for i in 0..bytes.len() {
            self.bytes[at + i] = self.preview(at, bytes, at + i);
        }
        let mut bars = self.bars;
        self.write_to(&mut bars, at, bytes);
        self.bars = bars;
        if self.is_power_control(at) {
            let (now, asked) = (self.power_state(), bytes[0] & PM_CTRL_STATE);
            // To a deeper state, or back to D0.
            if self.has_power_state(asked) && (asked == D0 || asked >= now) {
                self.set_power_state(asked);
            }
        }
        self.tell(at, bytes);
    }

    fn has_power_state(&self, state: u8) -> bool {
        let capabilities = self.power.map_or(0, |cap| self.u16(cap + PM_PMC));
        match state {
            1 => capabilities & PMC_D1 != 0,
            2 => capabilities & PMC_D2 != 0,
            _ => true,
        }
    }

    /// What the real device, if there is one, is to get: all but what begins a reset. The device's reset handler makes that,
    /// once the regions are revoked.
    fn tell(&mut self, at: usize, bytes: &[u8]) {
        if !self.is_real {
            return;
        }
        let mut bytes = bytes.to_vec();
        for reset in self.reset_bits.iter().flatten() {
            if let Some(byte) = reset.at.checked_sub(at).and_then(|byte| bytes.get_mut(byte)) {
                *byte &= !reset.bit;
            }
        }
        self.untold.push(Told { at, bytes });
    }

    /// A copy to try writes on: no real device gets them.
    pub(super) fn aside(&self) -> Self {
        Self { is_real: false, ..self.clone() }
    }

    /// The same for BARs as written. Bits of an address that cannot be written stay, whatever is written.
    fn write_to(&self, bars: &mut [Option<BarRegister>; SLOTS], at: usize, bytes: &[u8]) {
        for (slot, register) in bars.iter_mut().enumerate() {
            let Some(register) = register else { continue };
            let registers = bar_at(slot);
            let first = at.max(registers.start);
            let last = (at + bytes.len()).min(registers.end);
            if first >= last {
                continue;
            }
            let below = (register.size() - 1).to_le_bytes();
            let mut written = register.written().to_le_bytes();
            for place in first..last {
                let byte = place - registers.start;
                let mask = self.writable[place] | below[byte];
                written[byte] = written[byte] & !mask | bytes[place - at] & mask;
            }
            register.write(first - registers.start, &written[first - registers.start..last - registers.start]);
        }
    }

    /// Takes the BARs' addresses from the bytes, after those were set.
    pub(super) fn read_bars(&mut self) {
        for (slot, register) in self.bars.iter_mut().enumerate() {
            let registers = bar_at(slot);
            if let Some(register) = register {
                register.write(0, &self.bytes[registers]);
            }
        }
    }

    /// True if a write at `at` is one to PMCSR.
    pub(super) fn is_power_control(&self, at: usize) -> bool {
        self.power.is_some_and(|cap| at == cap + PM_CTRL)
    }

    /// The bytes, and what is known of BARs besides.
    pub(super) fn save(&self) -> (Vec<u8>, [Option<SavedBar>; SLOTS]) {
        let bars = std::array::from_fn(|slot| {
            let register = self.bars[slot]?;
            let (written, pieces) = register.saved();
            let place = self.decoded.place(space_of(slot)).map(|place| place.address);
            Some(SavedBar { size: register.size(), written, pieces, place })
        });
        (self.bytes.to_vec(), bars)
    }

    /// Checks that a state is one of this device's: what cannot be written is the same. Returns the registers with which BARs
    /// come to the places at which they were decoded, of those that hold no address.
    pub(super) fn check(&self, state: &DeviceState) -> Result<[Option<BarRegister>; SLOTS], PciError> {
        const OTHER: PciError = PciError::State("it is another device's: build this one by the same description");
        let power = self.power.map(|cap| cap + PM_CTRL);
        let fixed = |at: usize| !self.writable[at] & if power == Some(at) { !PM_CTRL_STATE } else { 0xff };
        let same = |(at, (own, theirs)): (usize, (&u8, &u8))| (own ^ theirs) & fixed(at) == 0;
        let power_state = power.and_then(|at| state.config.get(at)).map_or(D0, |control| control & PM_CTRL_STATE);
        if !self.has_power_state(power_state) {
            return Err(OTHER);
        }
        if self.bytes.len() != state.config.len() || !self.bytes.iter().zip(&state.config).enumerate().all(same) {
            return Err(OTHER);
        }
        let inside = |(at, bytes): &(u64, Vec<u8>)| {
            at.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.bytes.len() as u64)
        };
        if !state.begun.iter().all(inside) {
            return Err(CORRUPT);
        }
        let mut settled = [None; SLOTS];
        for (slot, (own, theirs)) in self.bars.iter().zip(&state.bars).enumerate() {
            let (Some(own), Some(theirs)) = (own, theirs) else {
                if own.is_some() != theirs.is_some() {
                    return Err(OTHER);
                }
                continue;
            };
            if own.size() != theirs.size {
                return Err(OTHER);
            }
            let register = own.with(theirs.written, theirs.pieces).ok_or(CORRUPT)?;
            let written = theirs.written.to_le_bytes();
            let agrees = |(at, written): (usize, u8)| (written ^ state.config[at]) & self.writable[at] == 0;
            let width = if own.kind() == BarType::Memory64 { 8 } else { 4 };
            if !bar_at(slot).zip(written).take(width).all(agrees) {
                return Err(CORRUPT);
            }
            if let Some(place) = theirs.place.filter(|_| !register.is_settled()) {
                let enabled = if own.kind() == BarType::Rom { u64::from(ROM_ENABLE) } else { 0 };
                let at_place = own.with(place | enabled, 0).filter(|register| register.address() == Some(place));
                settled[slot] = Some(at_place.ok_or(CORRUPT)?);
            }
        }
        Ok(settled)
    }

    /// Takes on a state that was checked; BARs have these registers instead of theirs, where there are any.
    pub(super) fn load(&mut self, state: &DeviceState, instead: &[Option<BarRegister>; SLOTS]) {
        self.bytes.copy_from_slice(&state.config);
        for (slot, register) in self.bars.iter_mut().enumerate() {
            let theirs = register.zip(state.bars[slot]).and_then(|(own, bar)| own.with(bar.written, bar.pieces));
            *register = instead[slot].or(theirs);
        }
    }

    /// True if a write begins a reset of the function.
    pub(super) fn begins_reset(&self, at: usize, bytes: &[u8]) -> bool {
        let sets = |reset: &ResetBit| {
            let byte = reset.at.checked_sub(at).and_then(|byte| bytes.get(byte));
            byte.is_some_and(|byte| byte & reset.bit != 0)
        };
        self.reset_bits.iter().flatten().any(sets)
    }

    /// The registers that decide what is decoded. `ungated`: the memory bit counts as this, whatever it is.
    pub(super) fn decode(&self, ungated: Option<bool>) -> Decode {
        let command = self.u16(COMMAND);
        let command = match ungated {
            None => command,
            Some(true) => command | COMMAND_MEMORY,
            Some(false) => command & !COMMAND_MEMORY,
        };
        Decode { command, power_state: self.power_state(), bars: self.bars }
    }

    /// What would follow for the places of BARs from this write, which is one to BARs only.
    pub(super) fn steps_of_bars(&self, at: usize, bytes: &[u8], ungated: Option<bool>) -> Steps {
        let mut bars = self.bars;
        self.write_to(&mut bars, at, bytes);
        self.decoded.steps(&Decode { bars, ..self.decode(ungated) })
    }

    /// Takes a write back, except bytes that it did not change: others may have written those since.
    pub(super) fn undo(&mut self, before: &Self, after: &Self) {
        self.made_of_begun = before.made_of_begun;
        for (at, (old, new)) in before.bytes.iter().zip(&after.bytes).enumerate() {
            if old != new {
                self.bytes[at] = *old;
                self.tell(at, &[*old]);
            }
        }
        for (slot, (old, new)) in before.bars.iter().zip(&after.bars).enumerate() {
            if old != new {
                self.bars[slot] = *old;
            }
        }
    }

    /// The power state's number, 0 (D0) for a device that has no others.
    pub(super) fn power_state(&self) -> u8 {
        self.power.map_or(0, |cap| self.bytes[cap + PM_CTRL] & PM_CTRL_STATE)
    }

    pub(super) fn set_power_state(&mut self, state: u8) {
        if let Some(cap) = self.power {
            let byte = &mut self.bytes[cap + PM_CTRL];
            *byte = *byte & !PM_CTRL_STATE | state & PM_CTRL_STATE;
        }
    }
}

/// The registers of a slot, both halves.
pub(super) fn bar_at(slot: usize) -> Range<usize> {
    match slot {
        ROM_SLOT => ROM_ADDRESS..ROM_ADDRESS + 4,
        5 => BAR0 + 20..BAR0 + 24,
        _ => BAR0 + 4 * slot..BAR0 + 4 * slot + 8,
    }
}

/// True if a write touches a base address register.
pub(super) fn touches_bars(at: usize, len: usize) -> bool {
    let end = at + len;
    at < BAR0 + 24 && end > BAR0 || at < ROM_ADDRESS + 4 && end > ROM_ADDRESS
}
