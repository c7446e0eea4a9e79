//! Saving a device's state, and restoring it into another.

use super::config::ConfigSpace;
use super::decode::MemoryStep;
use super::error::PciError;
use super::saved::DeviceState;
use super::state::{Device, DeviceTurn, PciDevice};
use crate::sync::wait::Patience;
use std::sync::atomic::Ordering;

impl PciDevice {
    /// The device's state, in any moment: its registers, among them BARs that are in the middle of a size probe or a move;
    /// its power state, low power, a reset that has failed; and writes that were [begun](Self::begin_write) and are not
    /// complete. Not in it are the content of its memory, which the [owner's views](Self::owner) give in any state, its
    /// ioeventfds, and its maps.
    ///
    /// Never waits: during a change it is the state that the registers show. Pause the vCPUs first, so that the guest changes
    /// nothing meanwhile.
    ///
    /// ```
    /// use revocable_mmio::pci::{Bar, DeviceState, PciDevice, Space};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let build = || PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).build();
    /// let source = build()?;
    /// source.write(Space::Config, 0x10, &0xe000_0000u32.to_le_bytes()[..])?; // the guest moves it, with memory off
    /// let state = source.save().to_bytes();
    /// let mut content = vec![0; 0x20000];
    /// source.owner(Space::Bar(0)).ok_or("memory")?.read_slice(0, &mut content)?;
    ///
    /// let destination = build()?;
    /// destination.owner(Space::Bar(0)).ok_or("memory")?.write_slice(0, &content)?;
    /// destination.restore(&DeviceState::from_bytes(&state)?)?;
    /// destination.write(Space::Config, 4, &[2, 0][..])?; // memory on
    /// assert_eq!(destination.place(Space::Bar(0)).map(|place| place.address), Some(0xe000_0000));
    /// # Ok(())
    /// # }
    /// ```
    pub fn save(&self) -> DeviceState {
        let device = &*self.device;
        let config = device.config.lock();
        let (bytes, bars) = config.save();
        // Under the registers' lock: what of a write they show is not begun again, and the rest is.
        let begun = device.begun.pending(config.made_of_begun);
        DeviceState {
            low_power: device.reach().low_power,
            failed: device.failed.load(Ordering::Relaxed),
            config: bytes,
            bars,
            begun,
        }
    }

    /// Brings the device to a saved state: one of a device of the same description. The memory's content comes before this,
    /// by the [owner's views](Self::owner). Maps that follow the device are told of the places, and writes that were begun
    /// are begun again.
    ///
    /// # Blocking
    /// As a [`write`](Self::write) to PCI_COMMAND. Waits for writes that were begun here, which are made before this.
    ///
    /// # Errors
    /// EINVAL for the state of another device, or if this one is real: nothing has changed. Otherwise as a write to PCI_COMMAND: with
    /// [`PciError::Place`], or where DMA is refused, all else is restored.
    pub fn restore(&self, state: &DeviceState) -> Result<(), PciError> {
        let device = &self.device;
        if device.real.0.is_some() {
            return Err(PciError::State("a real device has more state than its registers: restore it by its driver"));
        }
        let turn = device.take_turn_after_begun_writes()?;
        let settled = device.config.lock().check(state)?;
        let failed = device.failed.swap(state.failed, Ordering::Relaxed);
        // BARs whose registers hold no address come to their places as if theirs did; then the registers hold what they held.
        let mut restored =
            device.transition(&turn, Patience::Forever, state.low_power, |config| config.load(state, &settled));
        if !device.has_arrived_at(state) {
            device.failed.store(failed, Ordering::Relaxed);
            return restored;
        }
        device.config.lock().load(state, &[None; super::decode::SLOTS]);
        drop(turn);
        for (at, bytes) in &state.begun {
            restored = restored.and(self.begin_write(*at, bytes).map(drop));
        }
        restored
    }
}

impl Device {
    /// Takes the turn when every write that was begun before is made.
    fn take_turn_after_begun_writes(&self) -> Result<DeviceTurn<'_>, PciError> {
        loop {
            let turn = self.take_turn(Patience::Forever)?;
            if self.begun.is_empty() {
                return Ok(turn);
            }
            drop(turn);
            if self.members_now().iter().any(|member| member.protocol.gate.held_by_caller() > 0) {
                // One of the writes may be waiting for it.
                return Err(PciError::WouldDeadlock);
            }
            self.begun.wait();
        }
    }

    /// True if nothing is left to change for this state: the registers may be the same, and the memory not.
    fn has_arrived_at(&self, state: &DeviceState) -> bool {
        let config = self.config.lock();
        let steps = config.decoded.steps(&config.decode(self.ungated()));
        self.reach().low_power == state.low_power && steps.memory == MemoryStep::Stay && config.holds(&state.config)
    }
}

impl ConfigSpace {
    /// True if the bytes are these.
    fn holds(&self, bytes: &[u8]) -> bool {
        let mut own = vec![0; self.size()];
        self.read(0, &mut own);
        own == bytes
    }
}
