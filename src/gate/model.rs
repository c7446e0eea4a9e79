//! Model-checked: nobody is inside once the gate is drained, and every drain ends.
//!
//! The region is a loom cell: an access that is not ordered before the drainer's own, or after its opening of the
//! gate, is reported. A lost wake-up is a deadlock, which is reported too.

use super::*;
use crate::sync::{Arc, sabotage};
use loom::cell::UnsafeCell;
use loom::thread;

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

    /// A user of the region. Touches it if the gate lets in.
    fn touch(&self) {
        if let Ok(_guard) = self.gate.enter() {
            self.region.with(|_| ());
        }
    }

    /// The owner, with the region for itself.
    fn take(&self) {
        self.region.with_mut(|_| ());
    }
}

fn explore(broken: Option<Mutation>, preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    sabotage(broken);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
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
    users.map(|user| user.join().unwrap());
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

/// A closing that never waits, opens again if anybody is inside, and tries once more.
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
    explore(None, 2, closed);
}

#[test]
fn a_refused_entry_inside_of_a_guard_does_not_hide_the_guard() {
    explore(None, 3, nested);
}

#[test]
fn who_finds_the_gate_open_finds_everything_in_its_place() {
    explore(None, 3, reopened);
}

#[test]
fn a_drain_that_never_waits_is_right_too() {
    explore(None, 3, never_waits);
}

/// Each step left out, and the model that then fails, with loom's words for it.
macro_rules! fails_without {
    ($($test:ident: $mutation:ident, $model:ident, $says:literal;)*) => {$(
        #[test]
        #[should_panic(expected = $says)]
        fn $test() {
            explore(Some(Mutation::$mutation), 3, $model);
        }
    )*};
}

fails_without! {
    drained_fails_without_the_light_barrier: LightBarrier, nested, "";
    drained_fails_without_the_heavy_barrier: HeavyBarrier, nested, "";
    drained_fails_without_the_second_look: Recheck, nested, "Causality violation";
    drained_fails_if_entered_is_read_first: ScanOrder, nested, "Causality violation";
    drained_fails_if_leaving_orders_nothing: ExitRelease, nested, "Causality violation";
    drained_fails_if_opening_orders_nothing: OpenRelease, reopened, "Causality violation";
    drain_hangs_if_the_end_of_a_guard_tells_nobody: ExitNotify, nested, "deadlock";
    drain_hangs_if_a_refusal_tells_nobody: RefusalNotify, closed, "deadlock";
}
