//! While a range is not live, nothing of the region's file stands in it. So no event at the range, at a descriptor or
//! at a userfaultfd gives any content, under every strategy and policy and during a reset. Nothing hangs afterwards.

mod descriptors;

use crate::support;
use crate::support::addr;
use crate::support::count::addresses;
use crate::support::matrix::{Case, Memory, every_case};
use crate::support::{child, eventually, is_root, raw, read_text};
use nix::libc;
use revocable_mmio::{Mapping, OnDisabled, Region, Strategy};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// The value that the lookers store.
const MARK: u64 = 0x77;

/// The state of the region when the event happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    /// While it is enabled, before `disable()`.
    Enabled,
    Disabled,
    Reset,
}

/// A mapping of an enabled region, with the secret in each page and all pages mapped.
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

/// Threads that look at an address: a load, a system call and a store, each in a thread of its own since it may wait.
/// The result is the value read, or `None` if the access was refused.
struct Lookers(Vec<JoinHandle<Option<u64>>>);

impl Lookers {
    /// Asserts that none of them gets the content now, and that the store does not reach the region.
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

/// Makes the region not live, and runs `event` meanwhile. If the region comes back, every waiter has ended on return.
/// If it does not, the waiters are returned.
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

/// Clears the marks that waiting stores have left once the region was back.
fn forget_marks(region: &Region) {
    for at in (0..region.len()).step_by(4096) {
        region.owner().write(at + 8, 0_u64).expect("the owner writes");
    }
}

/// All of the content is as before, by accessors and raw pointers.
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

/// The lines of /proc/self/maps in a range: addresses, and device with inode.
fn files_in(from: usize, len: usize) -> Vec<(String, String)> {
    let maps = read_text("/proc/self/maps");
    let lines = maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, _, _, device, inode) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        let mapped = addresses(range)?;
        (mapped.start < from + len && from < mapped.end).then(|| (range.to_owned(), format!("{device} {inode}")))
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
                let collapsed = raw::advise(base, len, raw::MADV_COLLAPSE);
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

/// A part that has been moved away is out of reach of all strategies but Withdraw. The loss is counted, and the whole range
/// comes back.
#[test]
fn a_mapping_that_foreign_code_moves_away_is_counted_and_comes_back() {
    support::start();
    // In a process of its own, because another thread's mmap may fill the hole.
    child::alone(|| {
        every_case(|case| {
            // In parts of many pages: a thread that starts maps a stack for signals, and must not fill a hole as a whole.
            let part = if case.memory == Memory::Huge { 1 } else { 16 };
            for (first, pages) in [(0, 4), (1, 2), (3, 1)].map(|(first, parts)| (first * part, parts * part)) {
                let region = case.region(4 * part);
                let mapping = filled(case, &region);
                let (base, len) = (addr(&mapping), pages * case.page());
                let Ok(moved) = raw::move_away(base + first * case.page(), len, len + case.page()) else {
                    // Huge pages cannot be grown by mremap.
                    assert_eq!(case.memory, Memory::Huge, "{case}");
                    return;
                };
                let what = format!("{case}: {pages} pages from {first}");
                assert_eq!(region.stats().degraded, 0, "{what}");
                for round in 0..2 {
                    let back = happens(&region, During::Disabled, &what, || {
                        let lost = u64::from(case.strategy != Strategy::Withdraw);
                        assert_eq!(region.stats().degraded, lost, "{what}, round {round}: counted once");
                        (0..4)
                            .map(|page| base + page * part * case.page())
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

/// Foreign code splits a range into several mappings. All of them are revoked, and no address of another thread is
/// taken.
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
                        // A hole in the mapping still belongs to the mapping, and foreign memory in it is not safe.
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
                    // Under Block nothing of a disabled range can be locked. The region is enabled here.
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
                worker.join().unwrap_or_else(|_| panic!("{what}: another thread's memory was changed"));
            }
        });
    })
    .well();
}
