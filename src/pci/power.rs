//! Power states: D0 and D3hot through the power-management capability (`ConfigSpace::write`), and runtime low power.

use super::error::PciError;
use super::state::PciDevice;
use crate::sync::wait::Patience;

impl PciDevice {
    /// The power state, 0 (D0) to 3 (D3hot).
    pub fn power_state(&self) -> u8 {
        self.device.config.lock().power_state()
    }

    /// Enters runtime low power (`VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`): mappings are revoked until
    /// [`exit_low_power`](Self::exit_low_power). Calls still work, since a call wakes the device for its duration; an
    /// access through a mapping never wakes it. BARs stay decoded where they are.
    ///
    /// ```
    /// use revocable_mmio::MapOptions;
    /// use revocable_mmio::pci::{Bar, PciDevice, Space};
    ///
    /// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).build()?;
    /// let mapping = nic.map(Space::Bar(0), MapOptions::new())?;
    /// nic.enter_low_power()?;
    /// assert!(nic.is_low_power() && mapping.read::<u32>(0).is_err());
    /// nic.read(Space::Bar(0), 0, &mut [0; 4][..])?; // a call wakes it
    /// nic.exit_low_power()?;
    /// mapping.read::<u32>(0)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`Region::disable`](crate::Region::disable).
    ///
    /// # Errors
    /// The device is in low power already (EINVAL).
    pub fn enter_low_power(&self) -> Result<(), PciError> {
        let device = &*self.device;
        let turn = device.take_turn(Patience::Forever)?;
        if device.reach().low_power {
            return Err(PciError::LowPower);
        }
        device.transition(&turn, Patience::Forever, true, |_| {})
    }

    /// Leaves low power. Does nothing if the device is not in it.
    ///
    /// # Errors
    /// Memory could not be given back: the device stays in low power.
    pub fn exit_low_power(&self) -> Result<(), PciError> {
        let device = &*self.device;
        let turn = device.take_turn(Patience::Forever)?;
        device.transition(&turn, Patience::Forever, false, |_| {})
    }

    /// True if the device is in runtime low power.
    pub fn is_low_power(&self) -> bool {
        self.device.reach().low_power
    }
}
