//! Descriptors that other code in the process closes or replaces.

use super::{During, Lookers, SECRET, all_there, filled, forget_marks, happens};
use crate::support;
use crate::support::addr;
use crate::support::matrix::{Case, Memory, every_case};
use crate::support::{child, eventually, raw};
use revocable_mmio::{Monitor, Strategy, Support};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::{self};

/// The way in which a descriptor is lost.
#[derive(Clone, Copy, Debug)]
enum How {
    Closed,
    DevNull,
    /// Another file of the region's length takes its number.
    Another,
}

/// The crate's descriptors that the process has now, in the order of their numbers: userfaultfds, the files of covers,
/// and the region's memory.
fn descriptors(before: &BTreeSet<i32>) -> Vec<(i32, String)> {
    const ITS: [&str; 5] = ["[userfaultfd]", "revocable-empty", "revocable-ones", "memfd:matrix", "/revocable-"];
    let entries = fs::read_dir("/proc/self/fd").expect("the process's descriptors").flatten();
    let all = entries.filter_map(|entry| {
        let name = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some((entry.file_name().to_string_lossy().parse::<i32>().ok()?, name))
    });
    let mut its: Vec<_> =
        all.filter(|(fd, name)| !before.contains(fd) && ITS.iter().any(|its| name.contains(its))).collect();
    its.sort();
    its
}

/// Other code in the process closes or replaces one of a region's descriptors.
fn at_their_mercy(case: &Case, during: During, how: How, nth: usize, before: &BTreeSet<i32>) -> bool {
    // A monitor of its own, because losing the shared one would affect all regions.
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    let region = case.builder(2).monitor(monitor.clone()).build().expect("it builds");
    let mapping = filled(case, &region);
    let base = addr(&mapping);
    let Some((fd, name)) = descriptors(before).into_iter().nth(nth) else { return false };
    let what = format!("{case} {during:?} {how:?} {name}");
    if std::env::var_os("REVOCABLE_TRACE").is_some() {
        eprintln!("{what}");
    }
    let is_monitors = fd == monitor.as_fd().as_raw_fd();
    let is_regions = name.contains("memfd:matrix") || (name.starts_with('/') && !name.contains("memfd:"));
    let other = OwnedFd::from(File::from(raw::scratch()));
    let pattern = vec![0x33; region.len()];
    File::from(other.try_clone().expect("a descriptor")).write_all_at(&pattern, 0).expect("it takes them");
    let event = || match how {
        How::Closed => raw::close_behind_its_back(fd),
        How::DevNull => raw::put_over(fd, File::open("/dev/null").expect("there is one")),
        How::Another => raw::put_over(fd, &other),
    };
    if during == During::Enabled {
        event();
        if case.strategy == Strategy::Withdraw && is_regions {
            // Nothing else could empty the window: an error, and all is as before.
            let refused = region.disable().expect_err("the file is gone");
            assert!(region.is_enabled(), "{what}: {refused}");
            all_there(case, &region, &mapping, &what);
            return true;
        }
    }
    thread::scope(|scope| {
        let accessor = scope.spawn(|| mapping.read::<u64>(0));
        let back = happens(&region, during, &what, || {
            let early = Lookers::see_nothing(&region, base, &format!("{what}: before"));
            if during != During::Enabled {
                event();
            }
            let late = Lookers::see_nothing(&region, base + case.page(), &format!("{what}: after"));
            vec![early, late]
        });
        // Zap maps the file anew and needs its monitor. Replace maps the file anew, and Withdraw fills it from another.
        let needed = match case.strategy {
            Strategy::Zap => is_monitors || is_regions,
            Strategy::Replace | Strategy::Withdraw => is_regions,
            _ => false,
        };
        assert_eq!(back.is_err(), needed, "{what}");
        let mut waiting = Vec::new();
        match back {
            Ok(()) => {
                all_there(case, &region, &mapping, &what);
                // In a second cycle the crate has replaced the lost descriptor.
                let again = happens(&region, During::Disabled, &what, || {
                    vec![Lookers::see_nothing(&region, base, &format!("{what}: again"))]
                });
                assert!(again.is_ok(), "{what}: the next cycle");
                all_there(case, &region, &mapping, &what);
            }
            Err(lookers) => {
                waiting = lookers;
                // The mapping was back for a moment while `enable()` tried.
                forget_marks(&region);
                waiting.push(Lookers::see_nothing(&region, base, &format!("{what}: refused")));
                assert_eq!(mapping.try_read::<u64>(0).ok().filter(|value| *value == SECRET), None, "{what}");
            }
        }
        // The end of the region ends all waits.
        drop(region);
        waiting.into_iter().for_each(|lookers| lookers.end(&what));
        eventually(&format!("{what}: an accessor ends"), || accessor.is_finished());
        let load = thread::spawn(move || raw::load64(base));
        eventually(&format!("{what}: a load of a dropped region ends"), || load.is_finished());
        assert_ne!(load.join().expect("no panic"), Ok(SECRET), "{what}");
    });
    let mut now = vec![0; pattern.len() + 1];
    let len = File::from(other).read_at(&mut now, 0).expect("it can be read");
    assert!(now[..len] == pattern, "{what}: a store got into the file that took the number");
    // Closes the file that took the number, unless the number has another file by now.
    if !matches!(how, How::Closed) {
        let its = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
        if its == fs::canonicalize("/dev/null").expect("there is one") || its.to_string_lossy().contains("scratch") {
            raw::close_behind_its_back(fd);
        }
    }
    true
}

fn all_at_their_mercy(during: During) {
    let all = |fds: fs::ReadDir| -> BTreeSet<i32> {
        fds.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
    };
    let before = all(fs::read_dir("/proc/self/fd").expect("the process's descriptors"));
    every_case(|case| {
        if !matches!(case.memory, Memory::Memfd | Memory::Device) {
            return;
        }
        for how in [How::Closed, How::DevNull, How::Another] {
            let mut nth = 0;
            while at_their_mercy(case, during, how, nth, &before) {
                nth += 1;
            }
            // At least the monitor's descriptor and the region's.
            assert!(nth >= 2, "{case}: {nth} descriptors were found");
        }
    });
}

#[test]
fn a_descriptor_that_is_lost_while_enabled_opens_nothing_and_nothing_hangs() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    child::alone(|| {
        all_at_their_mercy(During::Enabled);
    })
    .well();
}

#[test]
fn a_descriptor_that_is_lost_while_disabled_opens_nothing_and_nothing_hangs() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    child::alone(|| {
        all_at_their_mercy(During::Disabled);
    })
    .well();
}

#[test]
fn a_descriptor_that_is_lost_during_a_reset_opens_nothing_and_nothing_hangs() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    child::alone(|| {
        all_at_their_mercy(During::Reset);
    })
    .well();
}
