//! Resets: of a function, by call or through configuration space, and of every function on a bus.
//!
//! While a reset runs, nothing reaches memory and accesses to an enabled device wait for its end; none is refused.

use super::config::ConfigSpace;
use super::error::{AfterFailedReset, PciError};
use super::regs::D0;
use super::state::{Device, DeviceTurn, PciDevice, Reach, ResetFn, ResetKind};
use crate::protocol::{Changes, WaitFor};
use crate::region::shared::RegionShared;
use crate::sync::wait::Patience;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Device {
    /// FLR through configuration space. The bit always reads as 0, so the guest is not told of a failure. `write` makes the
    /// rest of the write, once nothing can hold it up any more.
    pub(super) fn function_level_reset(
        self: &Arc<Self>,
        turn: &DeviceTurn<'_>,
        patience: Patience,
        reset: &ResetFn,
        write: impl FnOnce(&mut ConfigSpace),
    ) -> Result<(), PciError> {
        let device = PciDevice { device: Arc::clone(self) };
        let mut told = Ok(());
        let done = reset_all(&[(self, turn)], patience, || {
            ((), told) = self.change_registers(write);
            reset(&device, ResetKind::FunctionLevel)
        });
        done.and(told.map_err(PciError::from))
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
    /// The device has no way to be reset (EINVAL; nothing is zapped), or the reset itself failed: [`PciError::Reset`] says
    /// what the device is then. [`PciError::Place`], or the IOMMU's error: the function was reset, and a BAR or a DMA mapping
    /// of it could not be put back.
    pub fn reset(&self) -> Result<(), PciError> {
        self.reset_within(Patience::Forever)
    }

    /// [`reset`](Self::reset) that gives up after `patience` if guards, pins or other changes hold it up. The reset itself,
    /// once begun, is not interrupted.
    ///
    /// ```
    /// use revocable_mmio::pci::{AfterFailedReset, Bar, PciDevice, PciError, ResetKind};
    /// use std::time::Duration;
    ///
    /// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).revoked_after_failed_reset();
    /// let nic = nic.on_reset(|_, kind| if kind == ResetKind::Call { Err(std::io::Error::other("stuck")) } else { Ok(()) });
    /// let nic = nic.build()?;
    /// match nic.reset_timeout(Duration::from_secs(1)) {
    ///     Err(PciError::Reset { now: AfterFailedReset::Revoked, .. }) => assert!(nic.has_failed()),
    ///     Err(busy) => eprintln!("nothing was reset: {busy}"),
    ///     Ok(()) => {}
    /// }
    /// # assert!(nic.has_failed());
    /// # Ok::<(), PciError>(())
    /// ```
    ///
    /// # Errors
    /// As [`reset`](Self::reset); and EBUSY: nothing was reset.
    pub fn reset_timeout(&self, patience: Duration) -> Result<(), PciError> {
        self.reset_within(Patience::within(patience))
    }

    fn reset_within(&self, patience: Patience) -> Result<(), PciError> {
        let device = &self.device;
        let reset = device.reset.as_ref().ok_or(PciError::NoReset { what: "function" })?;
        let turn = device.take_turn(patience)?;
        reset_all(&[(device, &turn)], patience, || reset(self, ResetKind::Call))
    }

    /// True if a reset has failed and the memory is disabled until one succeeds:
    /// [`PciBuilder::revoked_after_failed_reset`](super::PciBuilder::revoked_after_failed_reset).
    pub fn has_failed(&self) -> bool {
        self.device.failed.load(Ordering::Relaxed)
    }
}

/// The functions that one reset of their bus reaches.
///
/// ```
/// use revocable_mmio::pci::{Bar, Bus, PciDevice, PciError};
///
/// let function = |name| PciDevice::builder(0x8086, 0x10d3).name(name).bar(0, Bar::memory(0x20000)).build();
/// let bus = Bus::new([function("port 0")?, function("port 1")?]);
/// bus.hot_reset(
///     |function| function.name().starts_with("port"), // may the caller reset it?
///     |functions| functions.iter().try_for_each(|_| Ok(())), // by their owner's views
/// )?;
/// assert_eq!(bus.functions().len(), 2);
///
/// let shared = bus.with_foreign("0000:01:00.2");
/// assert!(matches!(shared.hot_reset(|_| true, |_| Ok(())), Err(PciError::NotOwned { .. })));
/// # Ok::<(), PciError>(())
/// ```
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

    /// Adds a function that is not served here: the bus then cannot be reset. For vfio-pci a virtual function is always one,
    /// even if the caller has it too: it is in no set but its own (`vfio_pci_core_register_device`), so a bus that has one is
    /// never reset (EINVAL).
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
    /// changing, or that is guarded or pinned (EBUSY; undone in reverse); or the error of `reset` ([`PciError::Reset`]). As for [`PciDevice::reset`]
    /// where a BAR or a DMA mapping could not be put back.
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
            turns.0.push((device, device.try_turn()?));
        }
        let held: Vec<_> = turns.0.iter().map(|(device, turn)| (*device, turn)).collect();
        reset_all(&held, WaitFor::readers_only(), || reset(&self.functions))
    }
}

/// Turns that were taken, given back in reverse.
struct Turns<'a>(Vec<(&'a Arc<Device>, DeviceTurn<'a>)>);

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// Resets devices whose turns the caller has.
fn reset_all(
    devices: &[(&Arc<Device>, &DeviceTurn<'_>)],
    wait: impl Into<WaitFor>,
    reset: impl FnOnce() -> io::Result<()>,
) -> Result<(), PciError> {
    let wait = wait.into();
    devices.iter().try_for_each(|(_, turn)| turn.end_removed(wait))?;
    let of: Vec<_> = devices.iter().map(|(device, turn)| (device, turn.members())).collect();
    let mut members: Vec<_> = of.iter().flat_map(|(_, members)| members.iter().cloned()).collect();
    crate::region::group::in_order(&mut members);
    let run = || {
        // The power state first, as the driver does.
        let states = PowerStates::to_d0(devices);
        let done = catch_unwind(AssertUnwindSafe(reset));
        match done {
            Ok(Ok(())) => states.keep(),
            Ok(Err(_)) | Err(_) => devices.iter().for_each(|(device, _)| device.reset_failed()),
        }
        done
    };
    // What a device decodes stays, unless it is to be revoked now. A member that could not be given back stays revoked.
    let goal = |member: &Arc<RegionShared>| {
        let device = of.iter().find(|(_, members)| members.iter().any(|own| Arc::ptr_eq(own, member)));
        device.map(|(device, _)| device.reach().state())
    };
    let (done, settled) = Changes::reset(&members, wait, run, goal)?;
    let kept =
        devices.iter().map(|(device, _)| device.after_failure()).find(|after| *after == AfterFailedReset::Revoked);
    let now = kept.unwrap_or(AfterFailedReset::AsBefore);
    if let Ok(Ok(())) = done {
        devices.iter().for_each(|(device, _)| device.failed.store(false, Ordering::Relaxed));
    }
    let mut result = settled.map_err(PciError::from);
    for (device, turn) in devices {
        // A function that was in D3hot with the memory bit set has memory again, and one that stays revoked leaves its
        // places. The memory of neither has a holder to be waited for.
        result = result.and(device.update(turn, Patience::Forever, |_| {}));
    }
    match done {
        Ok(done) => done.map_err(|source| PciError::Reset { source, now }).and(result),
        Err(panic) => resume_unwind(panic),
    }
}

impl Device {
    /// What a reset that failed leaves behind.
    pub(super) fn after_failure(&self) -> AfterFailedReset {
        if self.revoked_after_failed_reset { AfterFailedReset::Revoked } else { AfterFailedReset::AsBefore }
    }

    /// Stays revoked, if that is asked for. The caller holds the write side of every member's memory lock.
    fn reset_failed(&self) {
        if self.revoked_after_failed_reset {
            self.failed.store(true, Ordering::Relaxed);
            self.set_reach(Reach { decoding: false, ..self.reach() });
        }
    }
}

/// The power states before a reset, to which devices return if it fails.
struct PowerStates<'a>(Vec<(&'a Arc<Device>, u8)>);

impl<'a> PowerStates<'a> {
    fn to_d0(devices: &[(&'a Arc<Device>, &DeviceTurn<'_>)]) -> Self {
        let to_d0 = |device: &'a Arc<Device>| {
            let mut config = device.config.lock();
            let before = config.power_state();
            config.set_power_state(D0);
            (device, before)
        };
        Self(devices.iter().map(|(device, _)| to_d0(device)).collect())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for PowerStates<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|(device, state)| device.config.lock().set_power_state(*state));
    }
}
