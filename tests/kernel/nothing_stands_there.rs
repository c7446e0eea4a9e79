//! While a range is not live nothing of the region's file stands in it. So whatever happens to the range, to a descriptor or to
//! a userfaultfd gives nothing of the content, under every strategy and policy and during a reset; and nothing hangs
//! afterwards.

use crate::support;
use crate::support::addr;
use crate::support::matrix::{Case, Memory, every_case};
use crate::support::{child, eventually, is_root, raw, read_text};
use nix::libc;
use revocable_mmio::{Mapping, Monitor, OnDisabled, Region, Strategy, Support};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// What the lookers store.
const MARK: u64 = 0x77;

/// When something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    /// While it is enabled, before `disable()`.
    Enabled,
    Disabled,
    Reset,
}

/// An enabled region with the secret in each page, and a mapping of it that has them all.
fn filled(case: &Case, region: &Region) -> Mapping {
    let mapping = case.map(region);
    for at in (0..region.len()).step_by(4096) {
        region.owner().write(at, SECRET).expect("the owner writes");
    }
    for at in (0..region.len()).step_by(case.page()) {
        assert_eq!(mapping.read::<u64>(at), Ok(SECRET), "{case}");
    }
    mapping
}

/// What got something, each in a thread of its own since it may wait: a load and a system call of the byte at an address, and a
/// store to it. `None`: refused.
struct Lookers(Vec<JoinHandle<Option<u64>>>);

impl Lookers {
    /// None of them gets the content now, and the store does not get into the region.
    fn see_nothing(region: &Region, at: usize, what: &str) -> Self {
        let load = move || raw::load64(at).ok();
        let call = move || {
            let file = File::from(raw::scratch());
            let mut word = [0; 8];
            raw::pwrite_from(&file, at, 8).ok()?;
            file.read_exact_at(&mut word, 0).ok()?;
            Some(u64::from_le_bytes(word))
        };
        let store = move || {
            let _ = raw::store64(at + 8, MARK);
            None
        };
        let threads = [thread::spawn(load), thread::spawn(call), thread::spawn(store)];
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(3) && !threads.iter().all(JoinHandle::is_finished) {
            thread::yield_now();
        }
        let mut waiting = Vec::new();
        for thread in threads {
            match thread.is_finished() {
                true => assert_ne!(thread.join().expect("no panic"), Some(SECRET), "{what}: the content was read"),
                false => waiting.push(thread),
            }
        }
        for at in (0..region.len()).step_by(4096) {
            assert_eq!(region.owner().read::<u64>(at + 8), Ok(0), "{what}: a store got into the region");
        }
        Self(waiting)
    }

    fn end(self, what: &str) {
        for waiting in self.0 {
            eventually(&format!("{what}: a waiter ends"), || waiting.is_finished());
            waiting.join().expect("no panic");
        }
    }
}

/// Has the region not be live, and something happen then. Whatever has waited has ended when it returns, if the region has come
/// back; else it waits for the region's end.
fn happens(
    region: &Region,
    during: During,
    what: &str,
    event: impl FnOnce() -> Vec<Lookers>,
) -> Result<(), Vec<Lookers>> {
    let (lookers, back) = match during {
        During::Reset => {
            let mut lookers = Vec::new();
            let reset = region.reset(|_| lookers = event());
            (lookers, reset.map(|()| true))
        }
        During::Enabled | During::Disabled => {
            region.disable().unwrap_or_else(|e| panic!("{what}: {e}"));
            (event(), region.enable())
        }
    };
    assert_eq!(back.is_ok(), region.is_enabled(), "{what}: {back:?}");
    match back {
        Ok(_) => {
            lookers.into_iter().for_each(|lookers| lookers.end(what));
            Ok(())
        }
        Err(e) => {
            println!("{what}: {e}");
            Err(lookers)
        }
    }
}

/// What waited stores when the region is back.
fn forget_marks(region: &Region) {
    for at in (0..region.len()).step_by(4096) {
        region.owner().write(at + 8, 0_u64).expect("the owner writes");
    }
}

/// Everything is as it was before, by accessors and raw pointers.
fn all_there(case: &Case, region: &Region, mapping: &Mapping, what: &str) {
    for at in (0..region.len()).step_by(4096) {
        assert_eq!(region.owner().read::<u64>(at), Ok(SECRET), "{what}");
    }
    forget_marks(region);
    let base = addr(mapping);
    let load = thread::spawn(move || (raw::load64(base), base));
    eventually(&format!("{what}: a load ends"), || load.is_finished());
    assert_eq!(load.join().expect("no panic").0, Ok(SECRET), "{what}");
    for at in (0..region.len()).step_by(case.page()) {
        assert_eq!(mapping.read::<u64>(at), Ok(SECRET), "{what}");
        assert_eq!(raw::load64(base + at), Ok(SECRET), "{what}");
    }
}

/// The parts of /proc/self/maps in a range: addresses, and device and inode.
fn files_in(from: usize, len: usize) -> Vec<(String, String)> {
    let number = |text| usize::from_str_radix(text, 16).expect("hexadecimal");
    let maps = read_text("/proc/self/maps");
    let lines = maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, _, _, device, inode) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        let (start, end) = range.split_once('-')?;
        (number(start) < from + len && from < number(end)).then(|| (range.to_owned(), format!("{device} {inode}")))
    });
    lines.collect()
}

#[test]
fn huge_pages_duplicates_and_map_files_give_nothing() {
    support::start();
    every_case(|case| {
        let region = case.region(if case.memory == Memory::Huge { 2 } else { 1024 });
        let len = region.len();
        for during in [During::Disabled, During::Reset] {
            let what = format!("{case} {during:?}");
            let mapping = filled(case, &region);
            let base = addr(&mapping);
            let live: BTreeSet<String> = files_in(base, len).into_iter().map(|(_, file)| file).collect();
            assert!(!live.is_empty() && !live.contains("00:00 0"), "{what}: {live:?}");
            let mut copy = None;
            let back = happens(&region, during, &what, || {
                let mut lookers = Vec::new();
                for at in [base, base + len / 2, base + len - 4096] {
                    lookers.push(Lookers::see_nothing(&region, at, &what));
                }
                for (range, file) in files_in(base, len) {
                    assert!(!live.contains(&file), "{what}: the region's file is mapped at {range}");
                    if is_root() {
                        let mut word = [0; 8];
                        let there = File::open(format!("/proc/self/map_files/{range}"));
                        let _ = there.and_then(|file| file.read_at(&mut word, 0));
                        assert_ne!(u64::from_le_bytes(word), SECRET, "{what}: map_files of {range}");
                    }
                }
                copy = raw::move_away(base, 0, len).ok();
                if let Some(copy) = copy {
                    lookers.push(Lookers::see_nothing(&region, copy, &format!("{what}: a duplicate")));
                }
                let allowed = raw::advise(base, len, libc::MADV_HUGEPAGE);
                let collapsed = raw::advise(base, len, libc::MADV_COLLAPSE);
                let what = format!("{what}: {allowed:?} {collapsed:?}");
                for at in [base, base + len / 2] {
                    lookers.push(Lookers::see_nothing(&region, at, &what));
                }
                lookers
            });
            assert!(back.is_ok(), "{what}");
            all_there(case, &region, &mapping, &what);
            if let Some(copy) = copy {
                Lookers::see_nothing(&region, copy, &format!("{what}: a duplicate, later")).end(&what);
                raw::unmap(copy, len).expect("the test's");
            }
            assert_eq!(region.stats().degraded, 0, "{what}");
        }
    });
}

/// What happens to a descriptor.
#[derive(Clone, Copy, Debug)]
enum How {
    Closed,
    DevNull,
    /// Another file, as long as the region, takes its number.
    Another,
}

/// The crate's descriptors as the process has them now, in the order of their numbers: of userfaultfds, of what covers are made
/// of, of the region's memory.
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

/// A region whose descriptors are at the mercy of other code in the process.
fn at_their_mercy(case: &Case, during: During, how: How, nth: usize, before: &BTreeSet<i32>) -> bool {
    // One of its own: what becomes of the shared one becomes of all.
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
        // Zap maps the file anew and has its monitor serve it, Replace maps it anew.
        let needed = match case.strategy {
            Strategy::Zap => is_monitors || is_regions,
            Strategy::Replace => is_regions,
            _ => false,
        };
        assert_eq!(back.is_err(), needed, "{what}");
        let mut waiting = Vec::new();
        match back {
            Ok(()) => {
                all_there(case, &region, &mapping, &what);
                // A second cycle: the loss is made up for.
                let again = happens(&region, During::Disabled, &what, || {
                    vec![Lookers::see_nothing(&region, base, &format!("{what}: again"))]
                });
                assert!(again.is_ok(), "{what}: the next cycle");
                all_there(case, &region, &mapping, &what);
            }
            Err(lookers) => {
                waiting = lookers;
                // While `enable()` was trying, the mapping was back for a moment.
                forget_marks(&region);
                waiting.push(Lookers::see_nothing(&region, base, &format!("{what}: refused")));
                assert_eq!(mapping.try_read::<u64>(0).ok().filter(|value| *value == SECRET), None, "{what}");
            }
        }
        // Its end is the end of whatever still waits.
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
    // What still has the number is put away, unless it is another's by now.
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
            // The monitor's and the region's at least.
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

/// A part that has been moved away is out of the crate's reach. That is counted, and the whole range comes back.
#[test]
fn a_mapping_that_foreign_code_moves_away_is_counted_and_comes_back() {
    support::start();
    // Alone: another thread's mmap may come to lie in the hole.
    child::alone(|| {
        every_case(|case| {
            for (first, pages) in [(0, 4), (1, 2), (3, 1)] {
                let region = case.region(4);
                let mapping = filled(case, &region);
                let (base, len) = (addr(&mapping), pages * case.page());
                let Ok(moved) = raw::move_away(base + first * case.page(), len, len + case.page()) else {
                    // Huge pages do not grow on the way.
                    assert_eq!(case.memory, Memory::Huge, "{case}");
                    return;
                };
                let what = format!("{case}: {pages} pages from {first}");
                assert_eq!(region.stats().degraded, 0, "{what}");
                for round in 0..2 {
                    let back = happens(&region, During::Disabled, &what, || {
                        assert_eq!(region.stats().degraded, 1, "{what}, round {round}: counted once");
                        (0..4)
                            .map(|page| base + page * case.page())
                            .map(|at| Lookers::see_nothing(&region, at, &what))
                            .collect()
                    });
                    assert!(back.is_ok(), "{what}");
                    all_there(case, &region, &mapping, &what);
                }
                raw::unmap(moved, len + case.page()).expect("the test's");
            }
        });
    })
    .well();
}

/// A range in several pieces for the kernel: none of its pieces is left, and no address of another thread's is taken.
#[test]
fn splitting_a_mapping_harms_no_thread_that_maps_memory_meanwhile() {
    support::start();
    child::alone(|| {
        type Split = fn(usize) -> nix::Result<()>;
        let splits: [(&str, Split); 5] = [
            ("mlock", |page| raw::lock(page, 4096)),
            ("madvise", |page| raw::advise(page, 4096, libc::MADV_RANDOM)),
            ("mbind", |page| raw::bind(page, 4096)),
            ("mprotect", |page| raw::protect(page, 4096, libc::PROT_READ)),
            ("munmap", |page| raw::unmap(page, 4096)),
        ];
        every_case(|case| {
            if case.memory == Memory::Huge {
                return;
            }
            let region = case.region(16);
            let len = region.len();
            for (name, split) in splits {
                let what = format!("{case} {name}");
                let mapping = filled(case, &region);
                let base = addr(&mapping);
                let (end, ends) = std::sync::mpsc::channel::<()>();
                let worker = thread::spawn(move || {
                    let mut rounds = 0_u64;
                    while ends.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                        rounds += 1;
                        let own = raw::map_anonymous(len).expect("memory can be had");
                        // A hole in the mapping is the mapping's still, and what other code puts there is not safe.
                        if !(own < base + len && base < own + len) {
                            let pages = || (own..own + len).step_by(4096);
                            pages().for_each(|at| raw::store64(at, rounds).expect("the thread's own"));
                            thread::yield_now();
                            pages().for_each(|at| {
                                let there = raw::load64(at).map_err(|hit| hit.signal);
                                assert_eq!(there, Ok(rounds), "a foreign byte has changed");
                            });
                        }
                        raw::unmap(own, len).expect("the thread's own");
                    }
                    rounds
                });
                let since = Instant::now();
                let mut rounds = 0;
                while (since.elapsed() < Duration::from_millis(60) || rounds < 3) && !worker.is_finished() {
                    let page = base + (1 + rounds % 14) * 4096;
                    // Under Block nothing of the range can be locked while its region is disabled; here it is enabled.
                    split(page).unwrap_or_else(|e| panic!("{what}: {e}"));
                    region.disable().unwrap_or_else(|e| panic!("{what}: {e}"));
                    if case.policy != OnDisabled::Block {
                        for at in (base..base + len).step_by(4096) {
                            assert_ne!(raw::load64(at), Ok(SECRET), "{what}: {at:#x} is reached");
                        }
                    }
                    region.enable().unwrap_or_else(|e| panic!("{what}: {e}"));
                    all_there(case, &region, &mapping, &what);
                    rounds += 1;
                }
                drop(end);
                worker.join().unwrap_or_else(|_| panic!("{what}: another thread's memory"));
            }
        });
    })
    .well();
}
