//! The slow path of an access that did not succeed at once: look at the state, wait, resolve the fault, or give up.

use crate::protocol::State;
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::region::access_error::AccessError;
use crate::region::offsets::InMapping;
use crate::region::served::Served;
use crate::sync::inside;
use crate::sync::wait::Waited;
use crate::view::Server;
use std::sync::atomic::Ordering;

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
    pub(super) fn after_fault(&self, offset: usize, tries: &mut Tries) -> Result<(), AccessError> {
        if self.region.protocol.is_inherited() {
            return Err(AccessError::Forked { offset });
        }
        // As in `mend`. Asked before the read side is taken, since its holder is inside as well.
        let inside = inside::is_inside();
        // Under the read side of the memory lock; `admit` waits for the holder of the write side.
        if let Some(state) = self.region.protocol.try_read().filter(|state| **state == State::Enabled) {
            match &self.view.spec.server {
                Server::Own(_) => {
                    self.fault_in(InMapping(offset)).unwrap_or(Ok(())).map_err(|_| AccessError::NoMemory { offset })?
                }
                // Nothing refuses here unless a change failed half-way and could not be undone.
                _ if tries.left < 8 && !inside => drop(self.heal()),
                _ => {}
            }
            drop(state);
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
        Ok(())
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
