//! Accesses through the mapping: by raw pointers, system calls and virtual CPUs. The monitor or the kernel resolves their
//! faults.

use super::*;

fn disabled_and_enabled(world: &World) {
    world.disable();
    world.enable();
}

#[test]
fn nothing_reaches_revoked_memory_zap() {
    explore(3, || {
        let _ = accessed(Kind::Zap, OnDisabled::Sigbus, State::Enabled, disabled_and_enabled);
    });
}

#[test]
fn nothing_reaches_revoked_memory_detach() {
    explore(4, || {
        let _ = accessed(Kind::Detach, OnDisabled::Sigbus, State::Enabled, disabled_and_enabled);
    });
}

#[test]
fn nothing_reaches_memory_that_waits_zap() {
    explore(3, || {
        let met = accessed(Kind::Zap, OnDisabled::Block, State::Enabled, disabled_and_enabled);
        assert_eq!(met, Met::Memory, "under Block accesses wait");
    });
}

#[test]
fn nothing_reaches_memory_that_waits_detach() {
    explore(4, || {
        let met = accessed(Kind::Detach, OnDisabled::Block, State::Enabled, disabled_and_enabled);
        assert_eq!(met, Met::Memory, "under Block accesses wait");
    });
}

#[test]
fn a_reset_refuses_nobody_zap() {
    explore(3, || {
        let met = accessed(Kind::Zap, OnDisabled::Sigbus, State::Enabled, |world| world.reset(|| ()));
        assert_eq!(met, Met::Memory, "busy is not disabled");
    });
}

#[test]
fn a_reset_refuses_nobody_detach() {
    explore(4, || {
        let met = accessed(Kind::Detach, OnDisabled::Sigbus, State::Enabled, |world| world.reset(|| ()));
        assert_eq!(met, Met::Memory, "busy is not disabled");
    });
}

#[test]
fn who_waits_in_a_fault_is_refused_once_the_region_is_gone() {
    explore(3, || {
        let met = accessed(Kind::Zap, OnDisabled::Block, State::Disabled, |world| {
            assert!(world.change(State::Gone, Patience::Forever).unwrap());
        });
        assert_eq!(met, Met::Sigbus);
    });
}
