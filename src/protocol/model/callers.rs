//! Accesses on a caller's behalf, as its flags allow.

use super::*;

/// A caller beside a disable and an enable; its result.
fn beside_a_cycle(caller: Caller<'static>) -> Result<(), NotResolved> {
    let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
    let user = spawn(&world, 1, move |world| world.behalf(&caller));
    world.disable();
    world.enable();
    user.join().unwrap()
}

#[test]
fn no_caller_reaches_revoked_memory() {
    explore(3, || {
        let met = beside_a_cycle(Caller::new(FaultFlags::WAIT));
        assert!(matches!(met, Ok(()) | Err(NotResolved::Sigbus)), "{met:?}");
    });
}

#[test]
fn every_caller_ends_its_wait() {
    for flags in [FaultFlags::WAIT, FaultFlags::ALLOW_RETRY, FaultFlags::empty()] {
        explore(3, move || {
            assert_eq!(beside_a_cycle(Caller::new(flags).on_disabled(OnDisabled::Block)), Ok(()));
        });
    }
}

#[test]
fn a_reset_refuses_no_caller() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
        let user = spawn(&world, 1, |world| world.behalf(&Caller::new(FaultFlags::WAIT)));
        world.reset(|| ());
        assert_eq!(user.join().unwrap(), Ok(()), "busy is not disabled");
    });
}

#[test]
fn a_region_that_goes_ends_every_wait() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Block, State::Disabled);
        let user =
            spawn(&world, 1, |world| world.behalf(&Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block)));
        assert!(world.change(State::Gone, Patience::Forever).unwrap());
        assert_eq!(user.join().unwrap(), Err(NotResolved::Sigbus));
    });
}

/// The wait is for a region that stays disabled, or busy until the cancelled caller has returned.
#[test]
fn a_cancelled_caller_waits_for_nobody() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Block, State::Disabled);
        let token = CancelToken::new();
        let theirs = token.clone();
        let user = spawn(&world, 1, move |world| {
            world.behalf(&Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block).cancel(&theirs))
        });
        token.cancel();
        assert_eq!(user.join().unwrap(), Err(NotResolved::Killed));
    });
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
        let token = CancelToken::new();
        let theirs = token.clone();
        world.reset(|| {
            let user = spawn(&world, 1, move |world| world.behalf(&Caller::new(FaultFlags::KILLABLE).cancel(&theirs)));
            token.cancel();
            assert_eq!(user.join().unwrap(), Err(NotResolved::Killed));
        });
    });
}

/// The writer holds the memory lock until all of these have returned, so waiting for it would be a deadlock.
fn nowait_paths(world: &World) {
    for flags in [FaultFlags::NOWAIT, FaultFlags::NOWAIT | FaultFlags::TRIED | FaultFlags::KILLABLE] {
        for policy in [OnDisabled::Sigbus, OnDisabled::Block] {
            let caller = Caller::new(flags).on_disabled(policy);
            let mut lock = NoLock::default();
            let once = world.protocol.fault_once(&caller, &mut lock, || Some(world.kernel.reach()));
            assert_eq!(once, Err(Outcome::Retry { lock: LockAfter::Held }));
            assert_eq!(lock, NoLock::default(), "the caller's lock was released");
            assert_eq!(world.behalf(&caller), Err(NotResolved::WouldBlock));
        }
    }
    let pinned = world.protocol.on_behalf(&Caller::new(FaultFlags::NOWAIT), || world.protocol.pin().then_some(()));
    assert_eq!(pinned, Err(NotResolved::WouldBlock));
    assert!(world.protocol.gate.enter().is_err());
    world.kernel.serve(&world.protocol);
    for goal in [State::Enabled, State::Disabled] {
        assert!(matches!(world.change(goal, Patience::Never), Err(RevokeError::Busy(_))));
    }
}

#[test]
fn nowait_returns_while_a_writer_holds_the_lock_for_ever() {
    explore(3, || {
        let world = World::new(Kind::Zap, OnDisabled::Block, State::Enabled);
        world.reset(|| spawn(&world, 1, nowait_paths).join().unwrap());
    });
}

/// The same callers while the writer comes and goes: whatever the result, they return, and never sleep, since the only
/// thread that could wake them may have ended its last change.
#[test]
fn nowait_returns_whatever_the_writer_does() {
    explore(3, || {
        let world = World::new(Kind::Detach, OnDisabled::Sigbus, State::Enabled);
        let user = spawn(&world, 1, |world| {
            let met = world.behalf(&Caller::new(FaultFlags::NOWAIT));
            assert!(matches!(met, Ok(()) | Err(NotResolved::WouldBlock | NotResolved::Sigbus)), "{met:?}");
        });
        world.disable();
        world.enable();
        user.join().unwrap();
    });
}
