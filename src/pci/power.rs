//! Power states: D0 and D3hot through the power-management capability, and runtime low power.

use super::error::PciError;
use super::regs::*;
use super::state::{Device, PciDevice, Reach, TurnGuard};

impl Device {
    /// A write to PMCSR. A state that the device does not have, or cannot reach from its present one, is ignored
    /// (`pci_set_power_state` fails, and the driver does not report it).
    pub(super) fn write_power_control(&self, turn: &TurnGuard<'_>, at: usize, bytes: &[u8]) -> Result<(), PciError> {
        let asked = bytes[0] & PM_CTRL_STATE;
        let (now, supported) = {
            let config = self.config.lock();
            let capabilities = config.u16(at - PM_CTRL + PM_PMC);
            let supported = match asked {
                1 => capabilities & PMC_D1 != 0,
                2 => capabilities & PMC_D2 != 0,
                _ => true,
            };
            (config.power_state(), supported)
        };
        // To a deeper state, or back to D0.
        let state = if supported && (asked == D0 || asked >= now) { asked } else { now };
        let reach = Reach { decoding: self.decodes(self.memory_bit(), state), ..self.reach() };
        self.transition(turn, reach, |config| {
            config.write(at, bytes);
            config.set_power_state(state);
        })
    }
}

impl PciDevice {
    /// The power state, 0 (D0) to 3 (D3hot).
    pub fn power_state(&self) -> u8 {
        self.device.config.lock().power_state()
    }

    /// Enters runtime low power (`VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`): mappings are revoked until
    /// [`exit_low_power`](Self::exit_low_power). Calls still work, since a call wakes the device for its duration; an
    /// access through a mapping never wakes it.
    ///
    /// # Blocking
    /// As [`Region::disable`](crate::Region::disable).
    ///
    /// # Errors
    /// The device is in low power already (EINVAL).
    pub fn enter_low_power(&self) -> Result<(), PciError> {
        let device = &*self.device;
        let turn = device.take_turn()?;
        let reach = device.reach();
        if reach.low_power {
            return Err(PciError::LowPower);
        }
        device.transition(&turn, Reach { low_power: true, ..reach }, |_| {})
    }

    /// Leaves low power. Does nothing if the device is not in it.
    ///
    /// # Errors
    /// Memory could not be given back: the device stays in low power.
    pub fn exit_low_power(&self) -> Result<(), PciError> {
        let device = &*self.device;
        let turn = device.take_turn()?;
        device.transition(&turn, Reach { low_power: false, ..device.reach() }, |_| {})
    }

    /// True if the device is in runtime low power.
    pub fn is_low_power(&self) -> bool {
        self.device.reach().low_power
    }
}
