//! Model-checked: the protocol, the gate, pins and the fault path, over a kernel with one page.
//!
//! Real code: [`Protocol`] with [`Change`] and [`Changes`], the gate, [`Event`](crate::sync::wait::Event) and
//! [`CancelToken`], [`Protocol::fault_once`] with the decision function, [`Protocol::on_behalf`], pins. Fakes: the
//! mechanism and the monitor's answer ([`kernel`]), line by line after `view.rs` and `Served::serve`.
//!
//! Not modelled: time (a timed wait never times out, so nothing may need its timeout to end; the naps of a thread that
//! drives a manual monitor are left out), the fairness of the memory lock (no thread takes its read side twice), more than
//! one page or mapping (they share one list and one lock), recoverable accesses (to the protocol, raw accesses that look
//! again), failures of system calls (there are tests with injected errors), the lists of mappings and of pins' holders
//! (plain locks, leaves of the lock order).
//!
//! An access to the memory of a revoked region, or one that is not ordered against the owner's, is a panic. A thread that
//! waits for ever is a deadlock, which loom reports. Each property is also run without the step that it rests on.

mod kernel;

use super::*;
use crate::protocol::caller::Caller;
use crate::protocol::fault::{FaultFlags, LockAfter, NoLock, NotResolved, Outcome};
use crate::protocol::gate::adopt;
use crate::protocol::policy::OnDisabled;
use crate::sync::Arc;
use crate::sync::checker::thread::{self, JoinHandle};
use crate::sync::explore::{explore, fails_without};
use kernel::{Kernel, Kind, Met};
use std::fmt;
use std::ops::Deref;
use std::slice;
use std::time::Duration;

/// A region of the model; a clone is the same one.
#[derive(Clone)]
struct World(Arc<Parts>);

struct Parts {
    protocol: Protocol,
    kernel: Kernel,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl Deref for World {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Member for World {
    fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    fn mechanism(&self) -> &dyn Mechanism {
        &self.kernel
    }

    fn changed(&self, _was: State, _now: State, _took: Duration) {}

    fn was_reset(&self) {}
}

impl World {
    fn new(kind: Kind, policy: OnDisabled, state: State) -> Self {
        adopt(0);
        Self(Arc::new(Parts { protocol: Protocol::new(state), kernel: Kernel::new(kind, policy, state) }))
    }

    fn change(&self, to: State, patience: Patience) -> Result<bool, RevokeError> {
        Changes::make(slice::from_ref(self), to, patience).map_err(|failed| failed.source)
    }

    /// Disables, and uses the memory alone.
    fn disable(&self) {
        assert!(self.change(State::Disabled, Patience::Forever).unwrap());
        self.kernel.revoked(true);
        self.kernel.take();
    }

    fn enable(&self) {
        self.kernel.take();
        self.kernel.revoked(false);
        assert!(self.change(State::Enabled, Patience::Forever).unwrap());
    }

    /// Nothing reaches the memory during `inside`.
    fn reset(&self, inside: impl FnOnce()) {
        let enabled = Cell::new(false);
        let run = || {
            enabled.set(!self.kernel.is_revoked());
            self.kernel.revoked(true);
            self.kernel.take();
            inside();
            self.kernel.take();
            self.kernel.revoked(!enabled.get());
        };
        let ((), released) = Changes::reset(slice::from_ref(self), Patience::Forever, run, |_| None).unwrap();
        released.unwrap();
    }

    /// One access on behalf of a caller.
    fn behalf(&self, caller: &Caller<'_>) -> Result<(), NotResolved> {
        self.protocol.on_behalf(caller, || Some(self.kernel.reach()))
    }
}

fn spawn<T: 'static>(world: &World, number: usize, run: impl FnOnce(&World) -> T + 'static) -> JoinHandle<T> {
    let world = world.clone();
    thread::spawn(move || {
        adopt(number);
        run(&world)
    })
}

/// Runs `changes` while a thread accesses the mapping (twice, if there is no monitor to wait for), with a monitor if one is
/// needed; returns what the last access met.
fn accessed(kind: Kind, policy: OnDisabled, state: State, changes: impl FnOnce(&World)) -> Met {
    let world = World::new(kind, policy, state);
    let monitor = (kind == Kind::Zap).then(|| spawn(&world, 1, |world| world.kernel.monitor(&world.protocol)));
    let user = spawn(&world, 2, move |world| {
        if kind == Kind::Detach {
            let _ = world.kernel.access();
        }
        world.kernel.access()
    });
    changes(&world);
    let met = user.join().unwrap();
    if let Some(monitor) = monitor {
        world.kernel.stop();
        monitor.join().unwrap();
    }
    met
}

mod accesses;
mod callers;
mod changers;

/// Each step left out, the model that then fails, and the words for it.
macro_rules! left_out {
    ($($test:ident: $step:ident, $model:literal, $says:expr;)*) => {$(
        #[test]
        #[cfg_attr(miri, ignore = "Miri starts no process")]
        fn $test() {
            fails_without(Mutation::$step, concat!("protocol::model::", $model), $says);
        }
    )*};
}

const REACHED: &[&str] = &["of a revoked region", "Causality violation"];
const HANGS: &[&str] = &["deadlock"];

left_out! {
    nothing_reaches_revoked_memory_only_if_entries_are_dropped:
        Zap, "accesses::nothing_reaches_revoked_memory_zap", REACHED;
    nothing_reaches_revoked_memory_only_if_what_slipped_in_is_dropped:
        ClosingZap, "accesses::nothing_reaches_memory_that_waits_detach", REACHED;
    no_caller_reaches_revoked_memory_only_if_the_state_is_set_under_the_lock:
        StateUnset, "callers::no_caller_reaches_revoked_memory", REACHED;
    nobody_waits_in_a_fault_for_ever_only_if_woken:
        Wake, "accesses::nothing_reaches_memory_that_waits_zap", HANGS;
    nobody_waits_in_a_fault_for_ever_only_if_woken_after_the_unlock:
        WakeFirst, "accesses::a_reset_refuses_nobody_zap", HANGS;
    a_reset_refuses_nobody_only_if_faults_wait:
        HoldRefuses, "accesses::a_reset_refuses_nobody_zap", &["Sigbus"];
    no_caller_reaches_revoked_memory_only_if_it_acts_under_the_lock:
        FaultUnlocked, "callers::no_caller_reaches_revoked_memory", REACHED;
    no_caller_waits_for_ever_only_if_told_after_the_phase:
        NotifyFirst, "callers::every_caller_ends_its_wait", HANGS;
    no_caller_waits_for_ever_only_if_cancelling_tells:
        CancelNotify, "callers::a_cancelled_caller_waits_for_nobody", HANGS;
    no_caller_waits_for_ever_only_if_it_registers_before_it_looks:
        CheckBeforeRegister, "callers::a_cancelled_caller_waits_for_nobody", HANGS;
    no_caller_spins_only_if_a_failed_try_orders_what_follows:
        TryFence, "callers::a_reset_refuses_no_caller", &["maximum number of branches"];
    nowait_never_blocks_only_if_the_lock_is_tried:
        NowaitReads, "callers::nowait_returns_while_a_writer_holds_the_lock_for_ever", HANGS;
    nowait_never_blocks_only_if_the_monitor_tries_too:
        ServeReads, "callers::nowait_returns_while_a_writer_holds_the_lock_for_ever", HANGS;
    guards_and_faults_do_not_deadlock_only_if_drained_without_the_lock:
        DrainUnderLock, "changers::the_holder_of_a_guard_may_fault_pin_and_nest", HANGS;
    guards_and_changers_do_not_deadlock_only_if_own_guards_are_noticed:
        OwnGuards, "changers::the_holder_of_a_guard_that_disables_is_told", HANGS;
    no_pin_outlives_a_revocation_only_if_waited_for:
        PinsIgnored, "changers::no_pin_is_held_while_revoked", REACHED;
    no_pin_outlives_a_revocation_only_if_refused_by_the_gate:
        PinRefusal, "changers::no_pin_is_held_while_revoked", REACHED;
    a_drain_of_pins_ends_only_if_told:
        UnpinNotify, "changers::no_pin_is_held_while_revoked", HANGS;
}
