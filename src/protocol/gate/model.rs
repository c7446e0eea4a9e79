//! Model-checked: no guard is left once the gate is drained, and every drain ends.
//!
//! The region is a loom cell: an access that is not ordered before the drainer's own, or after its opening of the
//! gate, is reported. A lost wake-up is a deadlock, which is reported too.

use super::*;
use crate::sync::Arc;
use crate::sync::checker::cell::UnsafeCell;
use crate::sync::checker::thread;
use crate::sync::explore::{explore, fails_without};

struct World {
    gate: Gate,
    region: UnsafeCell<u32>,
}

// The cell is loom's: it reports what is not synchronised, which is the whole point.
#[expect(unsafe_code, reason = "the model's region is shared on purpose")]
// SAFETY: all accesses to the cell are checked by loom.
unsafe impl Sync for World {}
#[expect(unsafe_code, reason = "the model's region is shared on purpose")]
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for World {}

impl World {
    fn new(phase: Phase) -> Arc<Self> {
        Arc::new(Self { gate: Gate::new(phase), region: UnsafeCell::new(0) })
    }

    /// A user of the region, which touches it if the gate lets it in.
    fn touch(&self) {
        if let Ok(_guard) = self.gate.enter() {
            self.region.with(|_| ());
        }
    }

    /// The owner, which uses the region alone.
    fn take(&self) {
        self.region.with_mut(|_| ());
    }
}

fn user(world: &Arc<World>, number: usize, run: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || {
        threads::adopt(number);
        run(&world);
    })
}

/// Two users, one of them twice, against one closing.
fn closed() {
    let world = World::new(Phase::Open);
    threads::adopt(0);
    let users = [
        user(&world, 1, |world| {
            world.touch();
            world.touch();
        }),
        user(&world, 2, World::touch),
    ];
    world.gate.close(Patience::Forever).unwrap();
    world.take();
    world.gate.set_phase(Phase::Disabled);
    for user in users {
        user.join().unwrap();
    }
}

/// A user that tries to enter again while it holds a guard.
fn nested() {
    let world = World::new(Phase::Open);
    threads::adopt(0);
    let user = user(&world, 1, |world| {
        if let Ok(_guard) = world.gate.enter() {
            drop(world.gate.enter());
            world.region.with(|_| ());
        }
    });
    world.gate.close(Patience::Forever).unwrap();
    world.take();
    user.join().unwrap();
}

/// Disabled, changed, enabled: a user that gets in sees the change; then closed again.
fn reopened() {
    let world = World::new(Phase::Disabled);
    threads::adopt(0);
    let user = user(&world, 1, |world| {
        world.touch();
        world.touch();
    });
    world.take();
    world.gate.set_phase(Phase::Open);
    world.gate.close(Patience::Forever).unwrap();
    world.take();
    user.join().unwrap();
}

/// A closing that never waits, opens again if a guard is left, and tries once more.
fn never_waits() {
    let world = World::new(Phase::Open);
    threads::adopt(0);
    let user = user(&world, 1, World::touch);
    for _ in 0..2 {
        match world.gate.close(Patience::Never) {
            Ok(()) => world.take(),
            Err(NotDrained::Held(held)) => assert_eq!(held.len(), 1),
            Err(other) => panic!("{other:?}"),
        }
        world.gate.set_phase(Phase::Open);
    }
    user.join().unwrap();
}

#[test]
fn no_guard_is_alive_once_drained_and_every_drain_ends() {
    explore(3, closed);
}

#[test]
fn a_refused_entry_inside_of_a_guard_does_not_hide_the_guard() {
    explore(5, nested);
}

#[test]
fn who_finds_the_gate_open_finds_everything_in_its_place() {
    explore(4, reopened);
}

#[test]
fn a_drain_that_never_waits_is_right_too() {
    explore(5, never_waits);
}

/// Each step left out, the model that then fails, and loom's words for it.
macro_rules! left_out {
    ($($test:ident: $step:ident, $model:ident, $says:expr;)*) => {$(
        #[test]
        #[cfg_attr(miri, ignore = "Miri starts no process")]
        fn $test() {
            fails_without(Mutation::$step, concat!("protocol::gate::model::", stringify!($model)), $says);
        }
    )*};
}

const TOGETHER: &[&str] = &["Causality violation"];
const HANGS: &[&str] = &["deadlock"];

left_out! {
    nobody_inside_needs_the_light_barrier: LightBarrier, a_refused_entry_inside_of_a_guard_does_not_hide_the_guard, TOGETHER;
    nobody_inside_needs_the_heavy_barrier: HeavyBarrier, a_refused_entry_inside_of_a_guard_does_not_hide_the_guard, TOGETHER;
    nobody_inside_needs_the_second_look: Recheck, a_drain_that_never_waits_is_right_too, TOGETHER;
    nobody_inside_needs_the_scans_order: ScanOrder, a_refused_entry_inside_of_a_guard_does_not_hide_the_guard, TOGETHER;
    nobody_inside_needs_leaving_to_release: ExitRelease, a_drain_that_never_waits_is_right_too, TOGETHER;
    finding_all_in_place_needs_opening_to_release: OpenRelease, who_finds_the_gate_open_finds_everything_in_its_place, TOGETHER;
    a_drain_ends_only_if_leaving_notifies: ExitNotify, no_guard_is_alive_once_drained_and_every_drain_ends, HANGS;
    a_drain_ends_only_if_a_refusal_notifies: RefusalNotify, no_guard_is_alive_once_drained_and_every_drain_ends, HANGS;
}
