//! The capabilities that the model acts on: power management, PCI Express and Advanced Features.

use super::config::{ConfigSpace, ResetBit};
use super::error::PciError;
use super::regs::*;

/// Where a device has its capabilities.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Capabilities {
    /// Power management, and what it can do.
    pub(super) power: Option<(usize, u16)>,
    pub(super) express: Option<usize>,
    pub(super) advanced: Option<usize>,
}

impl Capabilities {
    /// Lists them in configuration space. `resets`: the function can be reset on its own.
    pub(super) fn describe(&self, config: &mut ConfigSpace, resets: bool) -> Result<(), PciError> {
        let power = self.power.map(|(at, _)| (at, CAP_POWER, PM_LEN));
        // A real device's may be of version 1, which ends earlier.
        let express_len = if config.is_real { EXP_DEVICE_LEN } else { EXP_LEN };
        let express = self.express.map(|at| (at, CAP_EXPRESS, express_len));
        let advanced = self.advanced.map(|at| (at, CAP_ADVANCED, AF_LEN));
        let present: Vec<_> = [power, express, advanced].into_iter().flatten().collect();
        let mut link = CAPABILITIES;
        for (i, &(at, id, len)) in present.iter().enumerate() {
            let place = u8::try_from(at).ok().filter(|_| at >= HEADER_END && at % 4 == 0 && at + len <= 256);
            let place = place.ok_or_else(|| {
                let why = format!("a capability of {len} bytes at {at:#x}: a multiple of 4, inside of 0x40..0x100");
                PciError::Description(why)
            })?;
            if let Some((other, _, taken)) =
                present[..i].iter().find(|(other, _, taken)| at < other + taken && *other < at + len)
            {
                let taken = *other..other + taken;
                let why = format!("the capability of {len} bytes at {at:#x} overlaps the one at {taken:#x?}");
                return Err(PciError::Description(why));
            }
            config.set(link, &[place]);
            config.set(at, &[id, 0]);
            link = at + 1;
        }
        if !present.is_empty() {
            config.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        }
        if let Some((at, pmc)) = self.power {
            config.set(at + PM_PMC, &pmc.to_le_bytes());
            config.power = Some(at);
        }
        if let Some(at) = self.express {
            config.set(at + EXP_FLAGS, &EXP_VERSION.to_le_bytes());
            config.set(at + EXP_DEVCAP, &if resets { EXP_DEVCAP_FLR } else { 0 }.to_le_bytes());
            config.allow(at + EXP_DEVCTL, &EXP_DEVCTL_WRITABLE.to_le_bytes());
            // In the register's high byte.
            config.reset_bits[0] = Some(ResetBit { at: at + EXP_DEVCTL + 1, bit: EXP_DEVCTL_FLR.to_le_bytes()[1] });
        }
        if let Some(at) = self.advanced {
            config.set(
                at + AF_LENGTH,
                &[u8::try_from(AF_LEN).unwrap_or(u8::MAX), if resets { AF_CAP_TP_FLR } else { 0 }],
            );
            config.reset_bits[1] = Some(ResetBit { at: at + AF_CTRL, bit: AF_CTRL_FLR });
        }
        Ok(())
    }
}
