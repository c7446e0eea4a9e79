//! After `init` regions and devices are made, mapped and taken away again under filters.

use super::exit;
use super::lists::*;
use crate::support::{self, child};
use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use revocable_mmio::pci::{Bar, IoEventLoop, PciDevice, Space, Width};
use revocable_mmio::{Backing, MapOptions, Need, Needs, OnDisabled, Region, ShareAccess, Strategy, Support, init};
use seccompiler::{SeccompAction, SeccompFilter};
use std::os::fd::{AsFd, OwnedFd};

const LEN: usize = 1 << 18;

/// A region of each kind: built, mapped, used, changed and dropped.
fn build_and_use(strategy: Strategy, policy: OnDisabled) {
    let builder = Region::builder(LEN);
    let builder = match strategy {
        Strategy::Withdraw => builder.shared(if policy == OnDisabled::Block { OnDisabled::Sigbus } else { policy }),
        _ => builder.strategy(strategy),
    };
    let region = builder.build().unwrap_or_else(|_| exit(2));
    let mapping = region.map(MapOptions::new().on_disabled(policy)).unwrap_or_else(|_| exit(3));
    let other = region.map(MapOptions::new().read_only().on_disabled(policy)).unwrap_or_else(|_| exit(4));
    for _ in 0..2 {
        if mapping.write(8, 7u64).is_err() || other.read(8) != Ok(7u64) {
            exit(5);
        }
        let disabled = region.disable();
        // Under Block it would wait.
        let reached = policy != OnDisabled::Block && mapping.read::<u64>(8) == Ok(7);
        if !matches!(disabled, Ok(true)) || reached {
            exit(6);
        }
        if !matches!(region.enable(), Ok(true)) || region.reset(|_| ()).is_err() {
            exit(7);
        }
    }
    if region.stats().degraded > 0 {
        exit(8);
    }
}

/// A device with an ioeventfd; one with a loop of its own is kicked.
fn hot_plug(eventfd: &EventFd, kicks: Option<&IoEventLoop>) {
    let builder = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(LEN as u64));
    let builder = match kicks {
        Some(kicks) => builder.io_event_loop(kicks.clone()),
        None => builder,
    };
    let device = builder.build().unwrap_or_else(|_| exit(9));
    let mapping = device.map(Space::Bar(0), MapOptions::new()).unwrap_or_else(|_| exit(10));
    if device.add_ioeventfd(0, 8, Width::Four, 7, eventfd.as_fd()).is_err() {
        exit(11);
    }
    if kicks.is_some_and(|kicks| !matches!(kicks.handle_ready(), Ok(1)) || mapping.read(8) != Ok(7u32)) {
        exit(12);
    }
    if device.remove_ioeventfd(0, 8, Width::Four, 7).is_err() {
        exit(13);
    }
}

/// A region over the caller's file.
fn build_over(file: &OwnedFd) {
    let backing = Backing::file(file.as_fd(), 0).unwrap_or_else(|_| exit(13));
    let region = Region::builder(LEN).backing(backing).build().unwrap_or_else(|_| exit(14));
    drop(region.map(MapOptions::new()).unwrap_or_else(|_| exit(15)));
}

/// Runs `work` in a process of its own, in which `init` has been called, under a filter with these lists.
fn under(lists: &'static [&'static [Allowed]], prepare_and_work: impl FnOnce(&dyn Fn())) {
    support::start();
    let ended = child::alone(|| {
        let needs = Needs::new().zap().detach().resets().block().all_ones(LEN).shared().ioeventfds();
        let _ready = init(needs).unwrap_or_else(|e| panic!("{e}"));
        prepare_and_work(&|| {
            install(&filter(lists));
        });
        exit(0)
    });
    assert_ne!(ended.by_signal(), Some(libc::SIGSYS), "a system call is missing in SECCOMP.md");
    ended.well();
}

#[test]
fn after_init_regions_come_and_go_under_a_filter() {
    require!(Support::current().userfaultfd(), "no userfaultfd");
    under(&[BUILDER, OWNER, ACCESSOR, ALLOCATOR, OF_THE_TEST], |close| {
        let file = memfd_create(c"of the program", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        ftruncate(&file, LEN as i64).expect("it can grow");
        close();
        for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
            for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
                build_and_use(strategy, policy);
            }
        }
        build_over(&file);
    });
}

#[test]
fn after_init_shared_regions_come_and_go_under_a_filter() {
    require!(Support::current().userfaultfd(), "no userfaultfd");
    under(&[BUILDER, BUILDER_SHARED, OWNER, WITHDRAW, ACCESSOR, ALLOCATOR, OF_THE_TEST], |close| {
        close();
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes] {
            build_and_use(Strategy::Withdraw, policy);
        }
    });
}

#[test]
fn after_init_a_region_is_shared_under_a_filter() {
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let lists: &[&[Allowed]] = &[
        SHARE,
        START_OF_A_THREAD,
        END_OF_A_THREAD,
        BUILDER,
        BUILDER_SHARED,
        OWNER,
        WITHDRAW,
        ACCESSOR,
        ALLOCATOR,
        OF_THE_TEST,
    ];
    under(lists, |close| {
        close();
        let region = Region::builder(LEN).shared(OnDisabled::Sigbus).build().unwrap_or_else(|_| exit(2));
        for access in [ShareAccess::ReadOnly, ShareAccess::ReadWrite] {
            drop(region.share(access).unwrap_or_else(|_| exit(3)));
        }
        if !matches!((region.disable(), region.enable()), (Ok(true), Ok(true))) {
            exit(4);
        }
    });
}

#[test]
fn after_init_a_device_is_plugged_and_kicked_under_a_filter() {
    require!(Support::current().userfaultfd(), "no userfaultfd");
    under(&[HOT_PLUG, KICKS, BUILDER, OWNER, ACCESSOR, ALLOCATOR, OF_THE_TEST], |close| {
        let (quiet, signalled) = (EventFd::new().expect("an eventfd"), EventFd::new().expect("an eventfd"));
        let kicks = IoEventLoop::manual().expect("a loop");
        signalled.write(1).expect("it counts");
        close();
        hot_plug(&quiet, None);
        hot_plug(&signalled, Some(&kicks));
    });
}

#[test]
fn after_init_all_threads_work_under_one_filter() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let ended = child::alone(|| {
        let needs = Needs::new().zap().detach().resets().block().all_ones(LEN).shared().ioeventfds();
        let _ready = init(needs).unwrap_or_else(|e| panic!("{e}"));
        let eventfd = EventFd::new().expect("an eventfd");
        let accessor: &[&[Allowed]] =
            &[BUILDER, BUILDER_SHARED, HOT_PLUG, OWNER, WITHDRAW, ACCESSOR, ALLOCATOR, OF_THE_TEST];
        install_everywhere(&filter(&[accessor, &[MONITOR, STAND_INS, SHARED_LOOP, KICKS, START_OF_A_THREAD]].concat()));
        for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw] {
            for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
                build_and_use(strategy, policy);
            }
        }
        let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(LEN as u64)).build();
        let device = device.unwrap_or_else(|_| exit(14));
        if device.add_ioeventfd(0, 8, Width::Four, 7, eventfd.as_fd()).is_err() || eventfd.write(1).is_err() {
            exit(15);
        }
        let owner = device.owner(Space::Bar(0)).unwrap_or_else(|| exit(16));
        while owner.read(8) != Ok(7u32) {
            std::thread::yield_now();
        }
        exit(0)
    });
    assert_ne!(ended.by_signal(), Some(libc::SIGSYS), "a system call is missing in SECCOMP.md");
    ended.well();
}

#[test]
fn init_lists_all_that_a_sandbox_refuses_and_a_program_goes_on_with_less() {
    support::start();
    let ended = child::alone(|| {
        let refused = [libc::SYS_userfaultfd, libc::SYS_openat, libc::SYS_epoll_create1].map(|call| (call, Vec::new()));
        let arch = std::env::consts::ARCH.try_into().expect("seccompiler knows this architecture");
        let errno = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let refuse = SeccompFilter::new(refused.into_iter().collect(), SeccompAction::Allow, errno, arch);
        install(&refuse.and_then(TryInto::try_into).expect("it compiles"));
        let everything = Needs::new().zap().detach().resets().block().all_ones(LEN).shared().ioeventfds();
        let missing = init(everything).expect_err("there is no userfaultfd").missing;
        let needs: Vec<Need> = missing.iter().map(|missing| missing.need).collect();
        assert_eq!(needs, [Need::Zap, Need::Resets, Need::Block, Need::IoEventFds]);
        assert!(missing.iter().all(|missing| missing.to_string().contains("EPERM")), "{missing:?}");
        let ready = init(Needs::new().detach().all_ones(LEN).shared()).expect("the rest is there");
        assert!(ready.monitor().is_none());
        let region = Region::builder(LEN).build().expect("it builds");
        let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::AllOnes)).expect("it maps");
        assert!(region.disable().expect("nothing is in the way"));
        assert_eq!(mapping.read(0), Ok(u32::MAX));
    });
    ended.well();
}
