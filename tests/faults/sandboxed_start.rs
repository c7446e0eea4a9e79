//! A monitor whose userfaultfd was opened elsewhere: before privileges were dropped, or by another process.
#![expect(unsafe_code, reason = "descriptors, fork, and the loads of a mapping's address")]

use crate::support::{self, child, forking, page_size};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{setresgid, setresuid};
use revocable_mmio::{MapOptions, Monitor, MonitorError, Region, Strategy, Support, UffdSource};
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::thread;

fn device() -> Option<File> {
    let opened = File::options().read(true).write(true).open("/dev/userfaultfd");
    if let Err(why) = &opened {
        support::skip(&format!("/dev/userfaultfd: {why}"), support::at_its_best());
    }
    opened.ok()
}

/// A userfaultfd without handshake, as a launcher would open it.
fn userfaultfd(device: &File) -> OwnedFd {
    use std::os::fd::AsRawFd;
    // SAFETY: USERFAULTFD_IOC_NEW takes a number.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), 0xaa00, libc::O_CLOEXEC) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor, which has no other owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn drop_privileges() {
    let nobody = 65534;
    setresgid(nobody.into(), nobody.into(), nobody.into()).expect("root may");
    setresuid(nobody.into(), nobody.into(), nobody.into()).expect("root may");
    assert!(File::open("/dev/userfaultfd").is_err(), "no way back");
}

/// Every use of a region: faults, revocation, restoration, a system call that faults.
fn everything_works(monitor: &Monitor) {
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw] {
        let region = Region::builder(1 << 20).strategy(strategy).monitor(monitor.clone()).build().expect("a region");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let address = mapping.as_ptr().expose_provenance();
        region.owner().write::<u64>(page_size(), 7).expect("the owner's view");
        for round in 0..20u64 {
            let load = thread::spawn(move || {
                // SAFETY: the mapping outlives the thread, the region is enabled.
                unsafe { std::ptr::with_exposed_provenance::<u64>(address + page_size()).read_volatile() }
            });
            assert_eq!(load.join().expect("no panic"), 7 + round);
            mapping.write::<u64>(page_size(), 8 + round).expect("enabled");
            assert!(region.disable().expect("nothing is in the way"));
            mapping.read::<u64>(page_size()).expect_err("revoked");
            let (_reader, writer) = nix::unistd::pipe().expect("a pipe");
            // SAFETY: only the kernel reads the bytes, and it refuses.
            let bytes = unsafe { std::slice::from_raw_parts(mapping.as_ptr(), 8) };
            assert_eq!(nix::unistd::write(&writer, bytes), Err(nix::errno::Errno::EFAULT), "{strategy}");
            assert!(region.enable().expect("it comes back"));
            assert_eq!(nix::unistd::write(&writer, bytes), Ok(8), "{strategy}: a system call's faults are served");
        }
        region.reset(|_| ()).expect("a reset");
        assert_eq!(region.stats().degraded, 0, "{strategy}");
    }
}

#[test]
fn a_userfaultfd_opened_before_privileges_were_dropped_serves_everything() {
    support::start();
    let ended = child::alone(|| {
        let Some(device) = device() else { return };
        let fd = userfaultfd(&device);
        drop(device);
        drop_privileges();
        assert!(!Support::current().sees_kernel_faults(), "this process could not open one itself");
        let monitor = Monitor::from_fd(fd, 1).expect("it is a userfaultfd");
        assert_eq!(monitor.source(), UffdSource::HandedIn);
        everything_works(&monitor);
        assert!(monitor.stats().faults > 0);
    });
    ended.well();
}

#[test]
fn the_device_handed_on_by_a_launcher_serves_everything() {
    support::start();
    let ended = child::alone(|| {
        let Some(device) = device() else { return };
        drop_privileges();
        let monitor = Monitor::from_device(device.as_fd(), 2).expect("it is the device");
        drop(device);
        everything_works(&monitor);
    });
    ended.well();
}

#[test]
fn a_monitor_over_a_handed_in_descriptor_can_be_driven_by_an_event_loop() {
    support::start();
    let Some(device) = device() else { return };
    let monitor = Monitor::from_fd(userfaultfd(&device), 0).expect("it is a userfaultfd");
    let region = Region::builder(1 << 16).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("zap");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    thread::scope(|scope| {
        let load = scope.spawn(|| mapping.read::<u64>(0));
        while !load.is_finished() {
            monitor.handle_ready(4).expect("it lives");
        }
        assert_eq!(load.join().expect("no panic"), Ok(0));
    });
}

#[test]
fn a_userfaultfd_that_serves_another_process_is_refused() {
    support::start();
    let ended = child::alone(|| {
        let Some(device) = device() else { return };
        for handshake_done in [false, true] {
            let fd = userfaultfd(&device);
            if handshake_done {
                let _done = Monitor::from_fd(fd.try_clone().expect("a descriptor"), 0).expect("it serves this process");
            }
            let mut inherited = Some(fd);
            let mut taken = || inherited.take().expect("inherited");
            let refused = || matches!(Monitor::from_fd(taken(), 0), Err(MonitorError::Foreign));
            assert!(forking::is_fine(refused), "the child accepted a userfaultfd of its parent");
            assert!(Monitor::from_fd(taken(), 0).is_ok(), "and its own process still may");
        }
    });
    ended.well();
}

/// One ioctl of a userfaultfd.
fn ask<T>(fd: &OwnedFd, request: u32, argument: &mut T) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // SAFETY: `argument` is the structure of this request, live and initialised; the ranges in it are the test's own.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument)) })
        .map(drop)
}

/// The child's free addresses are those that its parent has just mapped. So an ioctl of the child's on a page of its
/// own would reach a page of its parent, for which a thread waits.
#[test]
fn the_process_that_a_refused_userfaultfd_serves_notices_nothing() {
    use linux_raw_sys::{general as raw, ioctl as nr};
    support::start();
    let ended = child::alone(|| {
        let Some(device) = device() else { return };
        let fd = userfaultfd(&device);
        let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features: 0, ioctls: 0 };
        ask(&fd, nr::UFFDIO_API, &mut api).expect("a handshake");
        let (ready, tell) = nix::unistd::pipe().expect("a pipe");
        let child = forking::start(|| {
            let told = nix::unistd::read(&ready, &mut [0]);
            let refused = told == Ok(1)
                && matches!(Monitor::from_fd(fd.try_clone().expect("a descriptor"), 0), Err(MonitorError::Foreign));
            i32::from(!refused)
        });
        // Mapped one by one, so that the pages fill the smallest gaps too, as the child's pages would.
        let pages: Vec<usize> = (0..64)
            .map(|_| {
                let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                // SAFETY: replaces nothing.
                let page = unsafe { libc::mmap(std::ptr::null_mut(), page_size(), prot, flags, -1, 0) };
                assert_ne!(page, libc::MAP_FAILED);
                page.expose_provenance()
            })
            .collect();
        for page in &pages {
            let range = raw::uffdio_range { start: *page as u64, len: page_size() as u64 };
            let mut argument =
                raw::uffdio_register { range, mode: raw::UFFDIO_REGISTER_MODE_MISSING.into(), ioctls: 0 };
            ask(&fd, nr::UFFDIO_REGISTER, &mut argument).expect("registered");
        }
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL).expect("flags");
        let loads: Vec<_> = pages
            .iter()
            .map(|page| {
                let page = *page;
                // SAFETY: mapped above, for good.
                thread::spawn(move || unsafe { std::ptr::with_exposed_provenance::<u8>(page).read_volatile() })
            })
            .collect();
        thread::sleep(std::time::Duration::from_millis(50));
        nix::unistd::write(&tell, &[1]).expect("it listens");
        assert_eq!(child.wait(), 0, "the child accepted a userfaultfd of its parent");
        assert_eq!(nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL), Ok(flags), "the descriptor's flags");
        assert!(loads.iter().all(|load| !load.is_finished()), "a page was filled, or is registered no more");
        let content = vec![0x5a_u8; page_size()];
        for page in &pages {
            let (dst, src, len) = (*page as u64, content.as_ptr().expose_provenance() as u64, page_size() as u64);
            let mut copy = raw::uffdio_copy { dst, src, len, mode: 0, copy: 0 };
            assert_eq!(ask(&fd, nr::UFFDIO_COPY, &mut copy), Ok(()), "a page is registered no more, or is there");
        }
        for load in loads {
            assert_eq!(load.join().expect("no panic"), 0x5a);
        }
    });
    ended.well();
}

#[test]
fn what_is_no_userfaultfd_is_refused() {
    support::start();
    let null = || OwnedFd::from(File::open("/dev/null").expect("it is there"));
    assert!(matches!(Monitor::from_fd(null(), 1), Err(MonitorError::Sys(_))));
    assert!(matches!(Monitor::from_device(null().as_fd(), 1), Err(MonitorError::Sys(_))));
}

#[cfg(feature = "userfaultfd")]
#[test]
fn a_descriptor_of_the_userfaultfd_crate_is_a_monitor() {
    support::start();
    use userfaultfd::{FeatureFlags, UffdBuilder};
    if device().is_none() {
        return;
    }
    let minor_shmem = FeatureFlags::from_bits_retain(1 << 10);
    let uffd = UffdBuilder::new().user_mode_only(false).require_features(minor_shmem).create().expect("a userfaultfd");
    let monitor = Monitor::try_from(uffd).expect("it serves this process");
    everything_works(&monitor);
}
