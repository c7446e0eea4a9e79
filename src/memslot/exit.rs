//! Exits: the outcome of a vCPU's access to revoked memory.

use super::access::BusAccess;
use super::core::SlotCore;
use super::error::{ExitError, MemslotError};
use super::set::Memslots;
use crate::protocol::caller::Caller;
use crate::protocol::fault::{FaultFlags, NotResolved};
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::stats::count;
use crate::sync::wait::{CancelToken, Waited};
use crate::sys::SysError;
use nix::errno::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The outcome of a guest's access to disabled memory. An access to busy memory (a reset) always waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WhenDisabled {
    /// A PCI Unsupported Request: loads read all-ones, stores are dropped. The default.
    #[default]
    UnsupportedRequest,
    /// Waits for `enable()`, then goes on; the wait can be cancelled.
    Wait,
    /// An error for the VMM.
    Fail,
}

/// What to do after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// Enter the vCPU again: the access was made, was answered, or will be executed again.
    Reenter,
    /// The token was cancelled while the access waited; the access is still open. Ask again before entering the vCPU, else
    /// its load reads all-ones or its store is lost.
    Cancelled,
    /// The exit is not about a revocable memslot: the VMM handles it.
    NotOurs,
}

/// How often in a row a vCPU may exit without an address, with nothing changed and nothing revoked, before the exit is left
/// to the VMM. A page that is given back while the exit is on its way here accounts for one.
const FAULTS_IN_A_ROW: u32 = 16;

/// How long to wait for one of several regions, any of which may be the one, before the others are looked at.
const TURN: Duration = Duration::from_millis(5);

/// Answers the exits of one vCPU, of any hypervisor: the VMM calls the method that fits the exit.
///
/// # Example
/// ```
/// use revocable_mmio::memslot::{Answer, ExitError, Exits, Memslots, Retention, WhenDisabled};
/// # use revocable_mmio::memslot::{SetMemslot, SlotMemory};
/// use revocable_mmio::{CancelToken, MapOptions, OnDisabled, Region};
/// use std::sync::Arc;
///
/// # struct Vm;
/// # #[allow(unsafe_code)]
/// # impl SetMemslot for Vm {
/// #     unsafe fn install(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// #     fn remove(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// # }
/// /// An exit, as the hypervisor tells it.
/// enum Exit<'a> {
///     Load(u64, &'a mut [u8]),
///     Store(u64, &'a [u8]),
///     NoMemory(Option<u64>),
///     NotEmulated,
///     Io,
/// }
///
/// fn answer(exits: &mut Exits, exit: Exit<'_>) -> Result<Answer, ExitError> {
///     match exit {
///         Exit::Load(gpa, data) => exits.mmio_read(gpa, data),
///         Exit::Store(gpa, data) => exits.mmio_write(gpa, data),
///         Exit::NoMemory(Some(gpa)) => exits.memory_fault(gpa),
///         Exit::NoMemory(None) => exits.efault(),
///         Exit::NotEmulated => exits.internal_error(),
///         Exit::Io => {
///             exits.other();
///             Ok(Answer::NotOurs)
///         }
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bar = Region::builder(64 << 10).build()?;
/// let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(OnDisabled::AllOnes))?);
/// let slots = Memslots::new(Arc::new(Vm));
/// let _slot = slots.add(1, 0xe000_0000, mapping, Retention::Remove)?;
///
/// // The loop of a vCPU's thread.
/// let mut exits = Exits::new(slots, WhenDisabled::UnsupportedRequest, CancelToken::new());
/// bar.disable()?;
/// let mut data = [0; 4]; // what the hypervisor gave with the exit
/// match answer(&mut exits, Exit::Load(0xe000_0010, &mut data))? {
///     Answer::Reenter => assert_eq!(data, [0xff; 4]), // completes the guest's load
///     Answer::Cancelled => exits.set_cancel(CancelToken::new()), // and asks again before the vCPU is entered
///     Answer::NotOurs => {} // the VMM's own bus
/// }
/// bar.enable()?;
/// assert_eq!(answer(&mut exits, Exit::Store(0xe000_0010, &7_u32.to_le_bytes()))?, Answer::Reenter);
/// assert_eq!(bar.owner().read::<u32>(0x10)?, 7);
/// assert_eq!(answer(&mut exits, Exit::Load(0xd000_0000, &mut data))?, Answer::NotOurs);
/// assert_eq!(answer(&mut exits, Exit::Io)?, Answer::NotOurs);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Exits {
    slots: Memslots,
    when: WhenDisabled,
    cancel: CancelToken,
    /// The sum of the regions' epochs at the last exit without an address.
    epochs: u64,
    left: u32,
}

impl Exits {
    /// For one vCPU; `cancel` cancels its waits.
    pub fn new(slots: Memslots, when: WhenDisabled, cancel: CancelToken) -> Self {
        Self { slots, when, cancel, epochs: 0, left: FAULTS_IN_A_ROW }
    }

    /// Sets a new token for the waits from now on: a cancelled token stays cancelled.
    pub fn set_cancel(&mut self, cancel: CancelToken) {
        self.cancel = cancel;
    }

    /// The vCPU has exited for another reason. Exits without an address are then no longer in a row.
    pub fn other(&mut self) {
        self.left = FAULTS_IN_A_ROW;
    }

    /// A guest load that has exited with its address; the hypervisor completes it with what `data` holds afterwards.
    ///
    /// # Blocking
    /// Waits while the region is busy, and while it is disabled under [`WhenDisabled::Wait`]; cancelling the token ends the
    /// wait.
    ///
    /// # Errors
    /// The access cannot be answered: see [`ExitError`]. It is still open, as after [`Answer::Cancelled`]; `data` is
    /// all-ones meanwhile.
    pub fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> Result<Answer, ExitError> {
        self.mmio(gpa, BusAccess::Load(data))
    }

    /// A guest store that has exited with its address and data.
    ///
    /// # Blocking
    /// As [`mmio_read`](Self::mmio_read).
    ///
    /// # Errors
    /// As [`mmio_read`](Self::mmio_read).
    pub fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> Result<Answer, ExitError> {
        self.mmio(gpa, BusAccess::Store(data))
    }

    /// The vCPU could not be run, for want of memory at an address that the hypervisor does not tell: `KVM_RUN` fails with
    /// EFAULT. The instruction has not been executed.
    ///
    /// # Blocking
    /// As [`mmio_read`](Self::mmio_read). If several regions are away, any of which may be the one, it ends with the
    /// first change of one of them, and the next exit waits for the others.
    ///
    /// # Errors
    /// As [`mmio_read`](Self::mmio_read).
    pub fn efault(&mut self) -> Result<Answer, ExitError> {
        self.fault(None, SlotCore::withdraw_for_address)
    }

    /// The same, with the address: `KVM_EXIT_MEMORY_FAULT`, mshv's unmapped GPA.
    ///
    /// # Blocking
    /// As [`mmio_read`](Self::mmio_read).
    ///
    /// # Errors
    /// As [`mmio_read`](Self::mmio_read).
    pub fn memory_fault(&mut self, gpa: u64) -> Result<Answer, ExitError> {
        self.fault(Some(gpa), SlotCore::withdraw_for_address)
    }

    /// The hypervisor could not emulate the guest's instruction (`KVM_EXIT_INTERNAL_ERROR`), which has not been executed.
    /// If a disabled region's memslot is out, that may be why: a slot whose mapping has policy
    /// [`OnDisabled::AllOnes`] is put back until the next change, and the instruction finds all-ones memory. An exception
    /// that the hypervisor has queued for the guest has to be dropped first: KVM queues #UD.
    ///
    /// # Blocking
    /// As [`efault`](Self::efault).
    ///
    /// # Errors
    /// As [`mmio_read`](Self::mmio_read); [`ExitError::NotEmulated`] if no suspect can be put back.
    pub fn internal_error(&mut self) -> Result<Answer, ExitError> {
        self.fault(None, SlotCore::put_back)
    }

    fn mmio(&mut self, gpa: u64, mut access: BusAccess<'_>) -> Result<Answer, ExitError> {
        self.other();
        let Some((core, offset)) = self.slots.find(gpa) else { return Ok(Answer::NotOurs) };
        let region = &core.mapping.served.region;
        let slot = core.slot;
        let at = core.mapping.offset().saturating_add(usize::try_from(offset).unwrap_or(usize::MAX));
        // What is beyond the slot's end is not the guest's, whatever the region has there.
        let crosses = offset.saturating_add(access.len() as u64) > core.mapping.len() as u64;
        if crosses || matches!(&access, BusAccess::Store(_)) && !core.mapping.is_writable() {
            return Ok(unsupported(&core, &mut access));
        }
        let policy = if self.when == WhenDisabled::Wait { OnDisabled::Block } else { OnDisabled::Sigbus };
        let caller = Caller::new(FaultFlags::WAIT).cancel(&self.cancel).on_disabled(policy);
        match region.protocol.on_behalf(&caller, || Some(access.make(&region.owner, at))) {
            Ok(Ok(())) => {
                core.bring_back();
                count(&core.counters.served);
                Ok(Answer::Reenter)
            }
            Err(NotResolved::Sigbus) if self.when == WhenDisabled::UnsupportedRequest => {
                Ok(unsupported(&core, &mut access))
            }
            // A device that was dropped on revocation has no owner's view to make the access through.
            Ok(Err(_)) if region.owner.is_empty() && self.when == WhenDisabled::UnsupportedRequest => {
                Ok(unsupported(&core, &mut access))
            }
            Ok(Err(_)) if core.is_turned_off() && self.when == WhenDisabled::UnsupportedRequest => {
                Ok(unsupported(&core, &mut access))
            }
            refused => {
                // For a VMM that enters the vCPU all the same: the instruction completes with the data that is there.
                access.ones();
                let (of, at) = (Some(slot), Some(gpa));
                match refused {
                    Ok(_) if core.is_turned_off() => Err(ExitError::Disabled { slot: of, gpa: at }),
                    Ok(_) => Err(ExitError::NoMemory { slot, gpa }),
                    Err(NotResolved::Killed) => Ok(Answer::Cancelled),
                    Err(NotResolved::Reentrant) => Err(ExitError::Reentrant { slot }),
                    Err(NotResolved::WouldDeadlock) => Err(ExitError::WouldDeadlock { slot }),
                    Err(_) if region.protocol.phase() == Phase::Gone => Err(ExitError::Gone { slot: of, gpa: at }),
                    Err(_) => Err(ExitError::Disabled { slot: of, gpa: at }),
                }
            }
        }
    }

    /// An access that was not executed, and whose address may be unknown. `remedy` makes the next try succeed, or exit with
    /// its address; false if it cannot.
    fn fault(
        &mut self,
        gpa: Option<u64>,
        remedy: impl Fn(&SlotCore) -> Result<bool, MemslotError>,
    ) -> Result<Answer, ExitError> {
        let slots = self.slots.all();
        let epochs = slots.iter().fold(0u64, |sum, core| sum.wrapping_add(core.protocol().epoch()));
        if epochs != self.epochs {
            self.left = FAULTS_IN_A_ROW;
        }
        self.epochs = epochs;
        let slots = gpa.map_or(slots, |gpa| self.slots.find(gpa).into_iter().map(|(core, _)| core).collect());
        if slots.is_empty() || self.left == 0 {
            return Ok(Answer::NotOurs);
        }
        self.left -= 1;
        let suspects = suspects(&slots);
        if suspects.is_empty() {
            return Ok(Answer::Reenter);
        }
        let waits = |phase| phase == Phase::Busy || phase == Phase::Disabled && self.when == WhenDisabled::Wait;
        let waiting: Vec<_> = suspects.iter().copied().filter(|(_, phase)| waits(*phase)).collect();
        if !waiting.is_empty() {
            return self.wait_for_any(&waiting);
        }
        let slot = if let [(core, _)] = suspects[..] { Some(core.slot) } else { None };
        if self.when == WhenDisabled::UnsupportedRequest {
            let mut helped = false;
            for (core, _) in &suspects {
                helped |= remedy(core).map_err(|e| ExitError::Vm { slot: core.slot, source: source_of(&e) })?;
            }
            return if helped { Ok(Answer::Reenter) } else { Err(ExitError::NotEmulated { slot }) };
        }
        match suspects.iter().all(|(_, phase)| *phase == Phase::Gone) {
            true => Err(ExitError::Gone { slot, gpa }),
            false => Err(ExitError::Disabled { slot, gpa }),
        }
    }

    /// Waits until one of several regions is no longer in the phase that it was seen in.
    fn wait_for_any(&self, waiting: &[(&Arc<SlotCore>, Phase)]) -> Result<Answer, ExitError> {
        loop {
            for (core, phase) in waiting {
                let (slot, protocol) = (core.slot, core.protocol());
                let turn = (waiting.len() > 1).then(|| Instant::now() + TURN);
                match protocol.wait_while(|now| now == *phase, Some(&self.cancel), turn) {
                    Waited::Done => return Ok(Answer::Reenter),
                    Waited::TimedOut => {}
                    Waited::Cancelled => return Ok(Answer::Cancelled),
                    Waited::Reentrant => return Err(ExitError::Reentrant { slot }),
                    Waited::WouldDeadlock => return Err(ExitError::WouldDeadlock { slot }),
                }
            }
        }
    }
}

/// The slots that an exit may be about: their regions are away, or open with a device that has turned its memory off by
/// itself. All-ones memory that stands in a slot makes no vCPU exit, unless there was no memory for it: then it is the only
/// one left.
fn suspects(slots: &[Arc<SlotCore>]) -> Vec<(&Arc<SlotCore>, Phase)> {
    let phases = slots.iter().map(|core| (core, core.protocol().phase()));
    let away: Vec<_> = phases.filter(|(core, phase)| *phase != Phase::Open || core.is_turned_off()).collect();
    let ones = |core: &SlotCore, phase| matches!(phase, Phase::Disabled | Phase::Gone) && core.has_ones();
    let exiting: Vec<_> = away.iter().filter(|(core, phase)| !ones(core, *phase)).copied().collect();
    if exiting.is_empty() { away } else { exiting }
}

fn unsupported(core: &SlotCore, access: &mut BusAccess<'_>) -> Answer {
    count(&core.counters.unsupported);
    access.ones();
    Answer::Reenter
}

fn source_of(error: &MemslotError) -> SysError {
    match error {
        MemslotError::Vm { source, .. } => *source,
        _ => SysError::new("SetMemslot", Errno::EEXIST),
    }
}
