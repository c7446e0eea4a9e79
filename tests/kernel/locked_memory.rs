//! A process locks all its memory, present and future (mlockall): revocation and waiting work as ever. The test runs in
//! a process of its own, because this changes the process for good.

use crate::support::{self, child, raw};
use nix::sys::mman::{MlockAllFlags, mlockall};
use revocable_mmio::{MapOptions, OnDisabled, Region, Strategy, Support};
use std::thread;
use std::time::Duration;

#[test]
fn locked_memory_is_revoked_and_waited_for_like_any_other() {
    support::start();
    require!(Support::current().userfaultfd(), "nothing waits without a userfaultfd");
    child::alone(locked_memory_is_revoked).well();
}

fn locked_memory_is_revoked() {
    if let Err(e) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        return support::skip(&format!("mlockall: {e}"), support::at_its_best());
    }
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw] {
        let region = Region::builder(1 << 20).strategy(strategy).disabled().build().expect("the strategy is there");
        let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
        region.owner().write::<u64>(0, 7).expect("the owner's view");
        let address = mapping.as_ptr().expose_provenance();
        for round in 0..2 {
            let load = thread::spawn(move || raw::load64(address));
            thread::sleep(Duration::from_millis(30));
            assert!(!load.is_finished(), "{strategy}, round {round}: it read something while disabled");
            region.enable().expect("comes back");
            assert_eq!(load.join().expect("it ends"), Ok(7), "{strategy}");
            region.disable().expect("nothing is in the way");
        }
    }
    waits_in_a_stand_in();
}

/// A stand-in waits in the place of a file that userfaultfd cannot register.
fn waits_in_a_stand_in() {
    use revocable_mmio::Backing;
    let path = std::env::temp_dir().join(format!("revocable-locked-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("it has no name any more");
    file.set_len(1 << 20).expect("it can grow");
    let backing = Backing::File { fd: file.into(), offset: 0, device: None };
    let region = Region::builder(1 << 20).backing(backing).build().expect("a file can be mapped");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    mapping.write::<u64>(0, 7).expect("enabled");
    let address = mapping.as_ptr().expose_provenance();
    let (load, early) = region
        .reset(|_| {
            let load = thread::spawn(move || raw::load64(address));
            thread::sleep(Duration::from_millis(30));
            let early = load.is_finished();
            (load, early)
        })
        .expect("nothing is in the way");
    assert!(!early, "it read something during a reset");
    assert_eq!(load.join().expect("it ends"), Ok(7));
}
