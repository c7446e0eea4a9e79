//! The slow path of an access that did not succeed at once: look at the state, wait, resolve the fault, or give up.
//!
//! UNSAFETY: accesses region memory by address, as `typed.rs` does.
#![expect(unsafe_code, reason = "accesses memory by address")]

use super::AccessKind;
use crate::protocol::State;
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::raw::{self, Faulted, Primitive};
use crate::region::access_error::{AccessError, check};
use crate::region::mapping::Mapping;
use crate::region::offsets::InMapping;
use crate::region::served::Served;
use crate::sync::inside;
use crate::sync::wait::Waited;
use crate::view::Server;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What an access that did not succeed at once does next.
pub(super) enum Next {
    /// Try, or try again.
    Try,
    /// Behave like an Unsupported Request: loads give all-ones, stores are dropped.
    Unsupported,
}

/// How often an access may still fault at an enabled region before the memory itself is taken to be at fault.
pub(super) struct Tries {
    epoch: u64,
    left: u32,
}

impl Tries {
    pub(super) fn new(served: &Served) -> Self {
        Self { epoch: served.region.protocol.epoch(), left: 16 }
    }
}

/// Whether an access was tried before it came to the slow path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tried {
    Not,
    Faulted,
}

impl Mapping {
    #[cold]
    #[inline(never)]
    pub(super) fn read_slow<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        if check::<T>(offset, self.len()).is_ok() {
            match self.served.turns_away() {
                Some(OnDisabled::Sigbus) => return Err(AccessError::Disabled { offset }),
                Some(OnDisabled::AllOnes) => return Ok(T::ALL_ONES),
                Some(OnDisabled::Block) | None => {}
            }
        }
        self.read_slower(offset)
    }

    #[inline(never)]
    fn read_slower<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        // SAFETY: as in `compare_exchange`.
        let load = |at: *mut T| unsafe { raw::load(at) };
        let value =
            self.attempt::<T, _>(offset, AccessKind::Load, self.was_tried::<T>(offset, AccessKind::Load), load)?;
        Ok(value.unwrap_or(T::ALL_ONES))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn write_slow<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        if check::<T>(offset, self.len()).is_ok() && self.is_writable() {
            match self.served.turns_away() {
                Some(OnDisabled::Sigbus) => return Err(AccessError::Disabled { offset }),
                Some(OnDisabled::AllOnes) => return Ok(()),
                Some(OnDisabled::Block) | None => {}
            }
        }
        self.write_slower(offset, value)
    }

    #[inline(never)]
    fn write_slower<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        // SAFETY: as in `compare_exchange`.
        let store = |at: *mut T| unsafe { raw::store(at, value) };
        self.attempt::<T, _>(offset, AccessKind::Store, self.was_tried::<T>(offset, AccessKind::Store), store).map(drop)
    }

    /// Whether the access came to the slow path because it faulted: it was tried if `admits` lets it through. If that has
    /// changed in between, the answer is wrong, and costs resolving a fault that is none, or one fault more.
    pub(super) fn was_tried<T: Primitive>(&self, offset: usize, kind: AccessKind) -> Tried {
        if self.admits::<T>(offset, kind) { Tried::Faulted } else { Tried::Not }
    }

    /// One access, with waiting, retries and resolving of faults, at the address that `access` is given. `None` means an
    /// Unsupported Request.
    pub(super) fn attempt<T: Primitive, R>(
        &self,
        offset: usize,
        kind: AccessKind,
        tried: Tried,
        access: impl Fn(*mut T) -> Result<R, Faulted>,
    ) -> Result<Option<R>, AccessError> {
        let served = &self.served;
        check::<T>(offset, self.len())?;
        if kind == AccessKind::Store && !self.is_writable() {
            return Err(AccessError::ReadOnly { offset });
        }
        if !raw::RECOVERABLE {
            return self.locked(offset, size_of::<T>(), kind, |at| access(at.cast()));
        }
        let mut tries = Tries::new(served);
        let mut faulted = tried == Tried::Faulted;
        loop {
            match served.admit(offset)? {
                Next::Unsupported => return Ok(None),
                Next::Try => {}
            }
            // A signal costs as much as all the rest of resolving a fault, so a fault that has happened is resolved before
            // the next try.
            if std::mem::take(&mut faulted) {
                if let Next::Unsupported = served.after_fault(offset, &mut tries)? {
                    return Ok(None);
                }
            }
            match access(self.at(offset)) {
                Ok(value) => return Ok(Some(value)),
                Err(Faulted) => faulted = true,
            }
        }
    }
}

impl Served {
    /// The policy, if the region is disabled and the policy does not wait. The result is then known, and costs no more than
    /// memory would have.
    #[inline]
    pub(super) fn turns_away(&self) -> Option<OnDisabled> {
        let protocol = &self.region.protocol;
        let policy = self.view.spec.policy;
        let known = policy != OnDisabled::Block && protocol.phase() == Phase::Disabled;
        known.then(|| {
            protocol.gate.turn_away();
            policy
        })
    }

    /// Looks at the state and waits as the policy and the caller allow, until the access may be tried.
    ///
    /// While a change of state waits for guards and pins the region is busy but still enabled, and accesses go on: the
    /// caller may hold one of those guards or pins. This waits for the memory lock only; the holder of its write side has
    /// waited for guards and pins already.
    pub(super) fn admit(&self, offset: usize) -> Result<Next, AccessError> {
        let protocol = &self.region.protocol;
        loop {
            let unwanted: &dyn Fn(Phase) -> bool = match (protocol.met(), self.view.spec.policy) {
                (Phase::Open, _) => {
                    if self.load_limit.load(Ordering::Relaxed) == 0 {
                        self.mend();
                    }
                    return Ok(Next::Try);
                }
                (Phase::Disabled | Phase::Gone, OnDisabled::AllOnes) => {
                    protocol.gate.turn_away();
                    return Ok(Next::Unsupported);
                }
                (Phase::Disabled, OnDisabled::Sigbus) => {
                    protocol.gate.turn_away();
                    return Err(AccessError::Disabled { offset });
                }
                (Phase::Gone, _) => return Err(AccessError::Gone { offset }),
                (Phase::Disabled, OnDisabled::Block) => &|now| matches!(now, Phase::Busy | Phase::Disabled),
                (Phase::Busy, _) => &|now| now == Phase::Busy,
            };
            if protocol.is_inherited() {
                return Err(AccessError::Forked { offset });
            }
            match protocol.wait_while_met(unwanted, None) {
                Waited::Reentrant => return Err(AccessError::Reentrant { offset }),
                Waited::WouldDeadlock => return Err(AccessError::WouldDeadlock),
                Waited::Done | Waited::Cancelled | Waited::TimedOut => {}
            }
        }
    }

    /// Repairs this mapping if the region is enabled and the mapping is not: a change failed half-way and could not be
    /// undone.
    #[cold]
    fn mend(&self) {
        if inside::is_inside() {
            // A signal handler has interrupted a thread that may hold the locks that the repair needs.
            return;
        }
        if let Some(state) = self.region.protocol.try_read().filter(|state| **state == State::Enabled) {
            let _ = self.heal();
            drop(state);
        }
    }

    /// An access faulted. Resolves the fault if the accessing thread has to, and decides whether trying again makes sense.
    pub(super) fn after_fault(&self, offset: usize, tries: &mut Tries) -> Result<Next, AccessError> {
        if self.region.protocol.is_inherited() {
            return Err(AccessError::Forked { offset });
        }
        // As in `mend`. Asked before the read side is taken, since its holder is inside as well.
        let inside = inside::is_inside();
        // Under the read side of the memory lock; `admit` waits for the holder of the write side.
        let enabled = self.region.protocol.try_read().filter(|state| **state == State::Enabled);
        let is_enabled = enabled.is_some();
        if let Some(state) = enabled {
            match &self.view.spec.server {
                Server::Own(_) => {
                    self.fault_in(InMapping(offset)).unwrap_or(Ok(())).map_err(|_| self.fails_at(offset))?
                }
                // Nothing refuses here unless a change failed half-way and could not be undone.
                _ if tries.left < 8 && !inside => drop(self.heal()),
                _ => {}
            }
            drop(state);
        }
        if is_enabled && !inside && self.region.is_off() {
            return self.turned_off(offset);
        }
        // A peer has held an emptying up that was given up since. It is done and undone when the peer lets go.
        if !inside && self.region.window.as_ref().is_some_and(|window| window.is_held()) {
            std::thread::sleep(Duration::from_micros(100));
            return Ok(Next::Try);
        }
        // A fault at a region that changed its state meanwhile does not count.
        let epoch = self.region.protocol.epoch();
        if epoch != tries.epoch {
            *tries = Tries { epoch, left: 16 };
        }
        tries.left = tries.left.checked_sub(1).ok_or_else(|| match inside {
            true => AccessError::Reentrant { offset },
            false => self.fails_at(offset),
        })?;
        Ok(Next::Try)
    }

    /// The end of an access to an enabled region whose device has turned the memory off by itself.
    #[cold]
    pub(super) fn turned_off(&self, offset: usize) -> Result<Next, AccessError> {
        self.region.protocol.gate.turn_away();
        match self.view.spec.policy {
            OnDisabled::AllOnes => Ok(Next::Unsupported),
            // No change of the region's state would end a wait.
            OnDisabled::Sigbus | OnDisabled::Block => Err(AccessError::Disabled { offset }),
        }
    }

    /// The reason why an access keeps faulting at an enabled region.
    #[cold]
    fn fails_at(&self, offset: usize) -> AccessError {
        match self.view.allows(self.view.range.part(offset, 1), self.view.spec.prot) {
            true => AccessError::NoMemory { offset },
            false => AccessError::Protected { offset },
        }
    }
}
