//! The crate never reads /proc. Where /proc is missing from the start, every strategy and policy works as elsewhere.

use crate::support;
use crate::support::addr;
use crate::support::matrix::{POLICIES, STRATEGIES, file_in};
use crate::support::raw::{self, Hit};
use crate::support::{a_moment, child, is_root, skip};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use revocable_mmio::{Backing, MapOptions, Mapping, OnDisabled, OnRevoke, Prot, Region, Strategy};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
const PAGE: usize = 4096;
const PAGES: usize = 8;

fn all_there(mapping: &Mapping, what: &str) {
    for at in (0..mapping.len()).step_by(PAGE) {
        assert_eq!(raw::load64(addr(mapping) + at), Ok(SECRET), "{what} {at:#x}");
        assert_eq!(raw::store64(addr(mapping) + at, SECRET), Ok(()), "{what} {at:#x}");
        assert_eq!(mapping.read::<u64>(at), Ok(SECRET), "{what} {at:#x}");
    }
}

/// Each page refuses as the policy says. Under Block the result of a load that begins now shows it.
fn refused(mapping: &Mapping, what: &str, then: impl FnOnce()) {
    let base = addr(mapping);
    match mapping.on_disabled() {
        OnDisabled::Block => {
            let load = thread::spawn(move || raw::load64(base));
            a_moment();
            assert!(!load.is_finished(), "{what}: it waits");
            assert_eq!(raw::write_from(base, 8), Err(Errno::EFAULT), "{what}");
            then();
            assert_eq!(load.join().expect("no panic"), Ok(SECRET), "{what}");
        }
        policy => {
            for at in (base..base + mapping.len()).step_by(PAGE) {
                let expected = if policy == OnDisabled::AllOnes { Ok(u64::MAX) } else { Err(Hit::bus(at)) };
                assert_eq!(raw::load64(at), expected, "{what} {at:#x}");
            }
            then();
        }
    }
}

fn everything_works(region: &Region, policy: OnDisabled, what: &str) {
    for at in (0..region.len()).step_by(PAGE) {
        region.owner().write(at, SECRET).expect("the owner writes");
    }
    let [mapping, other] = [(); 2].map(|()| region.map(MapOptions::new().on_disabled(policy)).expect("it maps"));
    let base = addr(&mapping);
    let enable = || assert!(region.enable().expect("it comes back"), "{what}");
    for round in 0..2 {
        let what = format!("{what} round {round}");
        all_there(&mapping, &what);
        assert!(region.disable().expect("it revokes"));
        refused(&mapping, &what, enable);
        all_there(&mapping, &what);

        let load = region.reset(|_| {
            let load = thread::spawn(move || raw::load64(base));
            a_moment();
            assert!(!load.is_finished(), "{what}: a load waits for a reset");
            load
        });
        assert_eq!(load.expect("it resets").join().expect("no panic"), Ok(SECRET), "{what}");

        raw::protect(base + PAGE, PAGE, nix::libc::PROT_READ).expect("ours");
        raw::unmap(base + 3 * PAGE, PAGE).expect("ours");
        region.disable().expect("it revokes");
        refused(&mapping, &format!("{what}: split"), enable);
        for mapping in [&mapping, &other] {
            all_there(mapping, &format!("{what}: split"));
        }

        region.disable().expect("it revokes");
        raw::unmap(base + 2 * PAGE, PAGE).expect("ours");
        enable();
        for mapping in [&mapping, &other] {
            all_there(mapping, &format!("{what}: a page was unmapped while disabled"));
        }

        mapping.protect(4 * PAGE..6 * PAGE, Prot::None).expect("inside");
        region.disable().expect("it revokes");
        if policy != OnDisabled::Block {
            for at in (base..base + mapping.len()).step_by(PAGE) {
                assert_ne!(raw::load64(at), Ok(SECRET), "{what} {at:#x}: split by protect");
            }
        }
        enable();
        assert!(raw::load64(base + 4 * PAGE).is_err_and(Hit::is_segv), "{what}: rights stay");
        mapping.protect(4 * PAGE..6 * PAGE, Prot::ReadWrite).expect("inside");
    }
    // Only the holes are counted.
    assert!(region.stats().degraded <= 2, "{what}: {}", region.stats().degraded);
}

fn every_way(devices: Vec<OwnedFd>) {
    for strategy in STRATEGIES {
        for policy in POLICIES {
            let region = Region::builder(PAGES * PAGE).strategy(strategy).build().expect("the strategy is there");
            everything_works(&region, policy, &format!("{strategy} {policy:?}"));
        }
    }
    for (fd, policy) in devices.into_iter().zip(POLICIES) {
        let backing = Backing::File { fd, offset: 0, device: Some(OnRevoke::Keep) };
        let region = Region::builder(PAGES * PAGE).backing(backing).build().expect("it builds");
        assert_eq!(region.strategy(), Strategy::Replace);
        everything_works(&region, policy, &format!("a device's file, {policy:?}"));
    }
}

/// Gives this thread, and all threads that it starts, a mount namespace of their own.
fn apart() -> bool {
    let apart = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>));
    if let Err(e) = apart {
        skip(&format!("no mount namespace can be had: {e}"), false);
    }
    apart.is_ok()
}

fn devices() -> Vec<OwnedFd> {
    POLICIES.map(|_| file_in(&std::env::temp_dir().to_string_lossy(), PAGES * PAGE)).into()
}

#[test]
fn everything_works_without_proc() {
    support::start();
    require!(is_root(), "only root can hide /proc", could: false);
    child::alone(|| {
        let devices = devices();
        if apart() {
            umount2("/proc", MntFlags::MNT_DETACH).expect("root may");
            assert!(!Path::new("/proc/self").exists(), "it is hidden");
            every_way(devices);
        }
    })
    .well();
}

#[test]
fn everything_works_in_an_empty_root_directory() {
    support::start();
    require!(is_root(), "only root can change the root directory", could: false);
    child::alone(|| {
        let devices = devices();
        if apart() {
            mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("root may");
            nix::unistd::chroot("/proc").expect("root may");
            std::env::set_current_dir("/").expect("it is a directory");
            every_way(devices);
        }
    })
    .well();
}
