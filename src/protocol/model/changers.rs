//! Changes of state beside each other, and beside guards and pins.

use super::*;
use crate::protocol::error::Holders;

fn state_of(world: &World) -> State {
    let state = *world.protocol.read().expect("no change is under way");
    assert_eq!(state.phase(), world.protocol.phase(), "the gate and the state disagree");
    state
}

/// A guard's holder faults, pins, nests and calls while a disable may wait for its guard.
#[test]
fn the_holder_of_a_guard_may_fault_pin_and_nest() {
    explore(3, || {
        let world = World::new(Kind::Zap, OnDisabled::Sigbus, State::Enabled);
        let monitor = spawn(&world, 1, |world| world.kernel.monitor(&world.protocol));
        let user = spawn(&world, 2, |world| {
            let Ok(_guard) = world.protocol.gate.enter() else { return };
            assert_eq!(world.kernel.access(), Met::Memory, "the region stays enabled");
            drop(world.protocol.gate.enter().expect("a guard inside of a guard"));
            assert_eq!(world.behalf(&Caller::new(FaultFlags::NOWAIT)), Ok(()), "it need not wait");
            let pinned =
                world.protocol.on_behalf(&Caller::new(FaultFlags::WAIT), || world.protocol.pin().then_some(()));
            assert_eq!(pinned, Ok(()), "a pin inside of a guard");
            world.protocol.unpin();
        });
        world.disable();
        user.join().unwrap();
        world.kernel.stop();
        monitor.join().unwrap();
    });
}

/// The owner's own access takes the memory lock and waits for no guard: their holders wait for it instead.
#[test]
fn a_privileged_access_waits_for_no_guard_and_their_holders_go_on_after_it() {
    explore(2, || {
        let world = World::new(Kind::Zap, OnDisabled::Sigbus, State::Enabled);
        let monitor = spawn(&world, 1, |world| world.kernel.monitor(&world.protocol));
        let user = spawn(&world, 2, |world| {
            let Ok(_guard) = world.protocol.gate.enter() else { return };
            assert_eq!(world.kernel.access(), Met::Memory, "the region stays enabled");
            assert_eq!(world.behalf(&Caller::new(FaultFlags::WAIT)), Ok(()));
        });
        drop(Changes::lock_out(slice::from_ref(&world)).unwrap());
        user.join().unwrap();
        world.kernel.stop();
        monitor.join().unwrap();
        assert_eq!(state_of(&world), State::Enabled);
    });
}

#[test]
fn the_holder_of_a_guard_that_disables_is_told() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
        let user = spawn(&world, 1, |world| {
            let Ok(_guard) = world.protocol.gate.enter() else { return };
            let told = world.change(State::Disabled, Patience::Forever);
            assert!(matches!(told, Err(RevokeError::WouldDeadlock { guards: 1 })), "{told:?}");
            assert!(!world.change(State::Enabled, Patience::Forever).expect("enabled as long as the guard lives"));
        });
        world.disable();
        user.join().unwrap();
    });
}

#[test]
fn no_pin_is_held_while_revoked() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
        let users = [1, 2].map(|number| {
            spawn(&world, number, |world| {
                let caller = Caller::new(FaultFlags::NOWAIT);
                if world.protocol.on_behalf(&caller, || world.protocol.pin().then_some(())).is_ok() {
                    world.kernel.reach();
                    world.protocol.unpin();
                }
            })
        });
        world.disable();
        for user in users {
            user.join().unwrap();
        }
        assert_eq!(world.protocol.pins(), 0);
    });
}

/// A thread that waits for a pin gets it once the region is enabled again.
#[test]
fn who_waits_for_a_pin_gets_it() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Block, State::Enabled);
        let user = spawn(&world, 1, |world| {
            let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
            let pinned = world.protocol.on_behalf(&caller, || world.protocol.pin().then_some(()));
            assert_eq!(pinned, Ok(()));
            world.kernel.reach();
            world.protocol.unpin();
        });
        world.disable();
        world.enable();
        user.join().unwrap();
    });
}

#[test]
fn of_two_that_disable_one_does_it_and_of_tries_the_busy_one_is_told() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
        let other = spawn(&world, 1, |world| world.change(State::Disabled, Patience::Forever).unwrap());
        let tries = spawn(&world, 2, |world| match world.change(State::Disabled, Patience::Never) {
            Ok(did) => did,
            Err(RevokeError::Busy(holders)) => {
                assert_eq!(holders, Holders::default(), "nobody holds anything");
                false
            }
            Err(other) => panic!("{other}"),
        });
        let mine = world.change(State::Disabled, Patience::Forever).unwrap();
        let did = [mine, other.join().unwrap(), tries.join().unwrap()];
        assert_eq!(did.iter().filter(|did| **did).count(), 1, "{did:?}");
        assert_eq!(state_of(&world), State::Disabled);
        assert_eq!(world.kernel.access(), Met::Sigbus);
    });
}

#[test]
fn enabling_beside_a_reset_leaves_the_region_enabled() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Disabled);
        world.kernel.revoked(false);
        let enabler = spawn(&world, 1, |world| assert!(world.change(State::Enabled, Patience::Forever).unwrap()));
        let reset = Changes::reset(slice::from_ref(&world), Patience::Forever, || (), |_| None);
        assert!(matches!(reset, Ok(((), Ok(())))));
        enabler.join().unwrap();
        assert_eq!(state_of(&world), State::Enabled);
        assert_eq!(world.kernel.access(), Met::Memory);
    });
}

/// A `try_` that gives up leaves everything as it was: guards come in again, waiters go on.
#[test]
fn who_gives_up_leaves_the_region_as_it_was() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
        let user = spawn(&world, 1, |world| {
            if let Ok(_guard) = world.protocol.gate.enter() {
                world.kernel.reach();
            }
            world.behalf(&Caller::new(FaultFlags::WAIT))
        });
        match world.change(State::Disabled, Patience::Never) {
            Ok(did) => {
                assert!(did);
                world.kernel.revoked(true);
                world.kernel.take();
                let met = user.join().unwrap();
                assert!(matches!(met, Ok(()) | Err(NotResolved::Sigbus)), "{met:?}");
            }
            Err(RevokeError::Busy(_)) => {
                assert_eq!(user.join().unwrap(), Ok(()));
                assert_eq!(state_of(&world), State::Enabled);
            }
            Err(other) => panic!("{other}"),
        }
    });
}
