//! Exits: the outcome of a vCPU's access to revoked memory.

use super::error::ExitError;
use super::slot::{Memslots, SlotCore};
use crate::protocol::caller::Caller;
use crate::protocol::fault::{FaultFlags, NotResolved};
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::region::access_error::AccessError;
use crate::region::owner::OwnerView;
use crate::stats::count;
use crate::sync::wait::{CancelToken, Waited};
use kvm_bindings::KVM_EXIT_MMIO;
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::libc;
use std::sync::Arc;

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
#[derive(Debug)]
#[must_use]
pub enum Handled<'vcpu> {
    /// Enter the vCPU again: the access was made, was answered, or will be executed again.
    Reenter,
    /// The token was cancelled while the access waited; the access is still open. Call
    /// [`ExitHandler::again`] before entering the vCPU, else its load reads all-ones or its store is lost.
    Cancelled,
    /// The exit is not about a revocable memslot: the VMM handles it.
    Other(Result<VcpuExit<'vcpu>, kvm_ioctls::Error>),
}

/// How often in a row `KVM_RUN` may fail with EFAULT, with nothing changed and nothing revoked, before the failure is left
/// to the VMM. A page that is given back while the exit is on its way here accounts for one.
const FAULTS_IN_A_ROW: u32 = 16;

/// Handles the exits of one vCPU.
#[derive(Debug)]
pub struct ExitHandler {
    slots: Memslots,
    when: WhenDisabled,
    cancel: CancelToken,
    /// The sum of the regions' epochs at the last EFAULT.
    epochs: u64,
    left: u32,
    /// An MMIO exit has not been answered yet.
    open: bool,
}

/// One MMIO access.
enum ExitAccess<'a> {
    Load(&'a mut [u8]),
    Store(&'a [u8]),
}

impl ExitHandler {
    /// A handler for one vCPU; `cancel` cancels its waits.
    pub fn new(slots: Memslots, when: WhenDisabled, cancel: CancelToken) -> Self {
        Self { slots, when, cancel, epochs: 0, left: FAULTS_IN_A_ROW, open: false }
    }

    /// Sets a new token for the waits from now on: a cancelled token stays cancelled.
    pub fn set_cancel(&mut self, cancel: CancelToken) {
        self.cancel = cancel;
    }

    /// Handles an exit of `KVM_RUN`.
    ///
    /// # Blocking
    /// Waits while the region is busy, and while it is disabled under [`WhenDisabled::Wait`]; cancelling the token ends the
    /// wait.
    ///
    /// # Errors
    /// The access cannot be answered: see [`ExitError`]. It is still open, as after [`Handled::Cancelled`].
    pub fn handle<'vcpu>(
        &mut self,
        exit: Result<VcpuExit<'vcpu>, kvm_ioctls::Error>,
    ) -> Result<Handled<'vcpu>, ExitError> {
        match exit {
            Ok(VcpuExit::MmioRead(gpa, data)) => match self.slots.find(gpa) {
                Some(core) => self.mmio(&core, gpa, ExitAccess::Load(data)),
                None => Ok(Handled::Other(Ok(VcpuExit::MmioRead(gpa, data)))),
            },
            Ok(VcpuExit::MmioWrite(gpa, data)) => match self.slots.find(gpa) {
                Some(core) => self.mmio(&core, gpa, ExitAccess::Store(data)),
                None => Ok(Handled::Other(Ok(VcpuExit::MmioWrite(gpa, data)))),
            },
            Ok(VcpuExit::MemoryFault { gpa, .. }) => match self.slots.find(gpa) {
                Some(core) => self.fault(&[core], Some(gpa), exit),
                None => Ok(Handled::Other(exit)),
            },
            Err(e) if e.errno() == libc::EFAULT => self.fault(&self.slots.all(), None, exit),
            other => {
                self.left = FAULTS_IN_A_ROW;
                Ok(Handled::Other(other))
            }
        }
    }

    /// Tries an access again that was [`Cancelled`](Handled::Cancelled) or got an error, before the vCPU is entered again.
    ///
    /// # Blocking
    /// As [`handle`](Self::handle).
    ///
    /// # Errors
    /// As [`handle`](Self::handle).
    pub fn again<'vcpu>(&mut self, vcpu: &'vcpu mut VcpuFd) -> Result<Handled<'vcpu>, ExitError> {
        let run = vcpu.get_kvm_run();
        if !std::mem::take(&mut self.open) || run.exit_reason != KVM_EXIT_MMIO {
            // The access was not executed: it exits again, if need be.
            return Ok(Handled::Reenter);
        }
        #[expect(unsafe_code, reason = "UNSAFETY: a member of KVM's union")]
        // SAFETY: KVM wrote this member at the exit that `exit_reason` names, and writes no other before the next entry,
        // which needs the `&mut VcpuFd` that is held here. Every value of its fields is valid.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        let len = usize::try_from(mmio.len).unwrap_or(usize::MAX).min(mmio.data.len());
        let (gpa, data) = (mmio.phys_addr, &mut mmio.data[..len]);
        self.handle(Ok(if mmio.is_write != 0 { VcpuExit::MmioWrite(gpa, data) } else { VcpuExit::MmioRead(gpa, data) }))
    }

    /// An access that exited with its address and data: KVM completes the instruction with the data that is put here.
    fn mmio<'vcpu>(&mut self, core: &SlotCore, gpa: u64, access: ExitAccess<'_>) -> Result<Handled<'vcpu>, ExitError> {
        self.left = FAULTS_IN_A_ROW;
        let region = &core.mapping.served.region;
        let slot = core.slot;
        let at = core.mapping.offset() + usize::try_from(gpa - core.gpa).unwrap_or(usize::MAX);
        let mut access = access;
        if matches!(&access, ExitAccess::Store(_)) && !core.mapping.is_writable() {
            return Ok(unsupported(core, &mut access));
        }
        let policy = if self.when == WhenDisabled::Wait { OnDisabled::Block } else { OnDisabled::Sigbus };
        let caller = Caller::new(FaultFlags::WAIT).cancel(&self.cancel).on_disabled(policy);
        match region.protocol.on_behalf(&caller, || Some(access.make(&region.owner, at))) {
            Ok(Ok(())) => {
                core.put_back();
                count(&core.counters.served);
                Ok(Handled::Reenter)
            }
            Err(NotResolved::Sigbus) if self.when == WhenDisabled::UnsupportedRequest => {
                Ok(unsupported(core, &mut access))
            }
            // A device that was dropped on revocation has no owner's view to make the access through.
            Ok(Err(_)) if region.owner.is_empty() && self.when == WhenDisabled::UnsupportedRequest => {
                Ok(unsupported(core, &mut access))
            }
            // The device has turned its memory off by itself.
            Ok(Err(_)) if self.when == WhenDisabled::UnsupportedRequest && region.is_off() => {
                Ok(unsupported(core, &mut access))
            }
            refused => {
                // For a VMM that enters the vCPU all the same: KVM completes the instruction with the data that it finds.
                access.ones();
                self.open = true;
                match refused {
                    Ok(_) if region.is_off() => Err(ExitError::Disabled { slot, gpa: Some(gpa) }),
                    Ok(_) => Err(ExitError::NoMemory { slot, gpa }),
                    Err(NotResolved::Killed) => Ok(Handled::Cancelled),
                    Err(NotResolved::Reentrant) => Err(ExitError::Reentrant { slot }),
                    Err(NotResolved::WouldDeadlock) => Err(ExitError::WouldDeadlock { slot }),
                    Err(_) if region.protocol.phase() == Phase::Gone => Err(ExitError::Gone { slot, gpa: Some(gpa) }),
                    Err(_) => Err(ExitError::Disabled { slot, gpa: Some(gpa) }),
                }
            }
        }
    }

    /// An access that was not executed, and whose address may be unknown: it is an access to one of `suspects`, or to none.
    fn fault<'vcpu>(
        &mut self,
        suspects: &[Arc<SlotCore>],
        gpa: Option<u64>,
        exit: Result<VcpuExit<'vcpu>, kvm_ioctls::Error>,
    ) -> Result<Handled<'vcpu>, ExitError> {
        let mut changed = false;
        let mut epochs = 0u64;
        for core in suspects {
            let protocol = &core.mapping.served.region.protocol;
            let slot = core.slot;
            loop {
                let phase = protocol.phase();
                match (phase, self.when) {
                    (Phase::Open, when) if core.mapping.served.region.is_off() => {
                        // No notification tells when the device's memory comes back: there is nothing to wait for.
                        if when != WhenDisabled::UnsupportedRequest {
                            return Err(ExitError::Disabled { slot, gpa });
                        }
                        changed |= core.withdraw_turned_off().map_err(|source| ExitError::Kvm { slot, source })?;
                        break;
                    }
                    (Phase::Open, _) => break,
                    (Phase::Disabled | Phase::Gone, WhenDisabled::UnsupportedRequest) => {
                        // The next access exits with its address and data, and is answered.
                        changed |= core.withdraw().map_err(|source| ExitError::Kvm { slot, source })?;
                        break;
                    }
                    (Phase::Gone, _) => return Err(ExitError::Gone { slot, gpa }),
                    (Phase::Disabled, WhenDisabled::Fail) => return Err(ExitError::Disabled { slot, gpa }),
                    (Phase::Busy, _) | (Phase::Disabled, WhenDisabled::Wait) => {
                        match protocol.wait_while(|now| now == phase, Some(&self.cancel), None) {
                            Waited::Cancelled => return Ok(Handled::Cancelled),
                            Waited::Reentrant => return Err(ExitError::Reentrant { slot }),
                            Waited::WouldDeadlock => return Err(ExitError::WouldDeadlock { slot }),
                            Waited::Done | Waited::TimedOut => {}
                        }
                        changed = true;
                    }
                }
            }
            epochs = epochs.wrapping_add(protocol.epoch());
        }
        if changed || epochs != self.epochs {
            self.left = FAULTS_IN_A_ROW;
        }
        self.epochs = epochs;
        if suspects.is_empty() || self.left == 0 {
            return Ok(Handled::Other(exit));
        }
        self.left -= 1;
        Ok(Handled::Reenter)
    }
}

fn unsupported<'vcpu>(core: &SlotCore, access: &mut ExitAccess<'_>) -> Handled<'vcpu> {
    count(&core.counters.unsupported);
    access.ones();
    Handled::Reenter
}

impl ExitAccess<'_> {
    fn ones(&mut self) {
        if let ExitAccess::Load(data) = self {
            data.fill(0xff);
        }
    }

    /// Makes one access if the size and alignment allow it; otherwise accesses byte by byte, as the bus would.
    fn make(&mut self, view: &OwnerView, at: usize) -> Result<(), AccessError> {
        macro_rules! as_one {
            ($t:ty) => {
                match self {
                    ExitAccess::Load(data) => {
                        view.read::<$t>(at).map(|value| data.copy_from_slice(&value.to_ne_bytes()))
                    }
                    ExitAccess::Store(data) => {
                        let mut bytes = [0; size_of::<$t>()];
                        bytes.copy_from_slice(data);
                        view.write(at, <$t>::from_ne_bytes(bytes))
                    }
                }
            };
        }
        let len = match self {
            ExitAccess::Load(data) => data.len(),
            ExitAccess::Store(data) => data.len(),
        };
        match len {
            2 if at % 2 == 0 => as_one!(u16),
            4 if at % 4 == 0 => as_one!(u32),
            8 if at % 8 == 0 => as_one!(u64),
            _ => (0..len).try_for_each(|i| match self {
                ExitAccess::Load(data) => view.read(at + i).map(|byte| data[i] = byte),
                ExitAccess::Store(data) => view.write(at + i, data[i]),
            }),
        }
    }
}
