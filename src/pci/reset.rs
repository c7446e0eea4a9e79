//! Resets: of a function, by call or through configuration space, and of every function on a bus.
//!
//! While a reset runs, nothing reaches memory and accesses to an enabled device wait for its end; none is refused.

use super::error::PciError;
use super::regs::D0;
use super::state::{Device, PciDevice, Reach, ResetKind, TurnGuard};
use crate::protocol::{Changes, WaitFor};
use crate::region::shared::RegionShared;
use crate::sync::wait::Patience;
use std::io;
use std::sync::Arc;

impl Device {
    /// FLR through configuration space. The bit always reads as 0, and a reset that fails has no way to report it.
    pub(super) fn function_level_reset(self: &Arc<Self>, turn: &TurnGuard<'_>) {
        if let Some(reset) = &self.reset {
            let device = PciDevice { device: Arc::clone(self) };
            let members: Vec<_> = self.members.clone();
            let _ =
                reset_all(&[(self, turn)], &members, Patience::Forever, || reset(&device, ResetKind::FunctionLevel));
        }
    }
}

impl PciDevice {
    /// Resets the function (`VFIO_DEVICE_RESET`): it goes to D0, mappings are zapped, accesses wait, and the rest of the
    /// configuration is kept. Memory that PCI_COMMAND disables stays disabled.
    ///
    /// # Blocking
    /// As [`Region::reset`](crate::Region::reset).
    ///
    /// # Errors
    /// The device has no way to be reset (EINVAL; nothing is zapped), or the reset itself failed.
    pub fn reset(&self) -> Result<(), PciError> {
        let device = &self.device;
        let reset = device.reset.as_ref().ok_or(PciError::NoReset { what: "function" })?;
        let turn = device.take_turn()?;
        reset_all(&[(device, &turn)], &device.members, Patience::Forever, || reset(self, ResetKind::Call))
    }
}

/// The functions that one reset of their bus reaches.
#[derive(Clone, Debug)]
pub struct Bus {
    /// In the one order in which every bus takes its functions.
    functions: Vec<PciDevice>,
    /// A function on the bus that is not served here.
    foreign: Option<String>,
}

impl Bus {
    /// A bus with these functions.
    pub fn new(functions: impl IntoIterator<Item = PciDevice>) -> Self {
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|function| Arc::as_ptr(&function.device).addr());
        functions.dedup_by(|a, b| Arc::ptr_eq(&a.device, &b.device));
        Self { functions, foreign: None }
    }

    /// Adds a function that is not served here: the bus then cannot be reset.
    #[must_use]
    pub fn with_foreign(mut self, name: impl Into<String>) -> Self {
        self.foreign = Some(name.into());
        self
    }

    /// The functions that a reset reaches (`VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`).
    pub fn functions(&self) -> &[PciDevice] {
        &self.functions
    }

    /// Resets the bus (`VFIO_DEVICE_PCI_HOT_RESET`), or does nothing at all. Every function goes to D0, every mapping of
    /// every function is zapped before `reset` runs, accesses wait, and functions that are enabled are given back
    /// afterwards.
    ///
    /// `owned` says whether the caller may reset a function; it is asked about each one before anything is touched. `reset`
    /// works through the owner's views, as in [`PciBuilder::on_reset`](super::PciBuilder::on_reset).
    ///
    /// # Blocking
    /// At most 100 ms, for single accesses that other threads are in the middle of.
    ///
    /// # Errors
    /// A function that is not the caller's (EINVAL); no function at all (ENODEV); a function that another thread is
    /// changing, or that is guarded or pinned (EBUSY; undone in reverse); or the error of `reset`.
    pub fn hot_reset(
        &self,
        owned: impl Fn(&PciDevice) -> bool,
        reset: impl FnOnce(&[PciDevice]) -> io::Result<()>,
    ) -> Result<(), PciError> {
        if self.functions.is_empty() {
            return Err(PciError::NoReset { what: "bus" });
        }
        let stranger = self.functions.iter().find(|function| !owned(function)).map(|f| f.name().to_owned());
        if let Some(name) = stranger.or_else(|| self.foreign.clone()) {
            return Err(PciError::NotOwned { name });
        }
        let mut turns = Turns(Vec::with_capacity(self.functions.len()));
        for function in &self.functions {
            let device = &function.device;
            if device.is_changed_by_caller() {
                return Err(PciError::Reentrant);
            }
            let turn = device.turn.try_take().ok_or_else(|| PciError::Busy { name: function.name().to_owned() })?;
            turns.0.push((device, turn));
        }
        let mut members: Vec<_> = self.functions.iter().flat_map(|f| f.device.members.iter().cloned()).collect();
        crate::region::group::in_order(&mut members);
        let held: Vec<_> = turns.0.iter().map(|(device, turn)| (*device, turn)).collect();
        reset_all(&held, &members, WaitFor::readers_only(), || reset(&self.functions))
    }
}

/// Turns that were taken, given back in reverse.
struct Turns<'a>(Vec<(&'a Arc<Device>, TurnGuard<'a>)>);

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// Resets devices whose turns the caller has; `members` are the regions of all of them, in order.
fn reset_all(
    devices: &[(&Arc<Device>, &TurnGuard<'_>)],
    members: &[Arc<RegionShared>],
    wait: impl Into<WaitFor>,
    reset: impl FnOnce() -> io::Result<()>,
) -> Result<(), PciError> {
    let run = || {
        // The power state first, as the driver does: a device in D3hot comes out of the reset in D0.
        for (device, _) in devices {
            device.config.lock().set_power_state(D0);
            let decoding = device.decodes(device.memory_bit(), D0);
            device.set_reach(Reach { decoding, ..device.reach() });
        }
        reset()
    };
    // A function that was in D3hot with the memory bit set has memory again. A member that could not be given back stays
    // revoked.
    let goal = |member: &Arc<RegionShared>| {
        let device = devices.iter().find(|(device, _)| device.has(member));
        device.map(|(device, _)| device.reach().state())
    };
    let (done, settled) = Changes::reset(members, wait, run, goal)?;
    done.map_err(PciError::Reset).and(settled.map_err(PciError::from))
}
