//! Huge pages: MADV_COLLAPSE and khugepaged set page-table entries without a fault. The crate forbids huge pages in its
//! mappings (MADV_NOHUGEPAGE). The tests also undo that.

use super::addr;
use super::calls::advise_process;
use crate::support::count::{huge, resident};
use crate::support::forking;
use crate::support::matrix::STRATEGIES;
use crate::support::raw::{self, Hit};
use crate::support::{self, at_its_best, is_root, read_text, release, skip};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, Strategy};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

const LEN: usize = 4 << 20;
const BYTE: u8 = 0xa5;
const POLICIES: [OnDisabled; 2] = [OnDisabled::Sigbus, OnDisabled::Block];

fn every_case(test: impl Fn(Strategy, OnDisabled, &Region, &Mapping)) {
    for strategy in STRATEGIES {
        for policy in POLICIES {
            let Ok(region) = Region::builder(LEN).strategy(strategy).build() else { continue };
            let Ok(mapping) = region.map(MapOptions::new().on_disabled(policy)) else { continue };
            region.owner().fill(0, BYTE, LEN).expect("the owner writes");
            assert_eq!(raw::load8(addr(&mapping)), Ok(BYTE), "{strategy} {policy:?}");
            test(strategy, policy, &region, &mapping);
        }
    }
}

fn check_refused(mapping: &Mapping, when: &str) {
    let base = addr(mapping);
    if mapping.on_disabled() == OnDisabled::Sigbus {
        for at in (base..base + LEN).step_by(LEN / 8) {
            assert_eq!(raw::load8(at), Err(Hit::bus(at)), "{when}");
        }
    } else {
        assert_eq!(resident(base, LEN), 0, "{when}: pages are mapped");
    }
}

fn check_there(mapping: &Mapping, when: &str) {
    let base = addr(mapping);
    for at in (base..base + LEN).step_by(LEN / 64) {
        assert_eq!(raw::load8(at), Ok(BYTE), "{when}");
    }
    assert_eq!(mapping.read::<u8>(LEN - 1), Ok(BYTE), "{when}");
}

#[test]
fn collapsing_into_huge_pages_opens_nothing() {
    support::start();
    let me = nix::unistd::getpid().as_raw();
    every_case(|strategy, policy, region, mapping| {
        let base = addr(mapping);
        let here = || raw::advise(base, LEN, raw::MADV_COLLAPSE);
        let from_elsewhere =
            || forking::exit_code(|| i32::from(advise_process(me, base, LEN, raw::MADV_COLLAPSE).is_ok()));
        for disabled in [false, true, false] {
            let when = format!("{strategy} {policy:?} disabled: {disabled}");
            if disabled {
                region.disable().expect("it revokes");
            }
            // A window is emptied by whole huge pages, so an enabled mapping of one may have them.
            if strategy != Strategy::Withdraw || disabled {
                assert!(here().is_err(), "{when}: a mapping was collapsed");
                assert_eq!(from_elsewhere(), 0, "{when}: a mapping was collapsed by another process");
            } else {
                let _ = here();
            }
            if disabled {
                check_refused(mapping, &when);
                region.enable().expect("it comes back");
            }
            check_there(mapping, &when);
        }
    });
}

fn allow_and_collapse(base: usize) -> nix::Result<()> {
    raw::advise(base, LEN, libc::MADV_HUGEPAGE)?;
    for _ in 0..200 {
        match raw::advise(base, LEN, raw::MADV_COLLAPSE) {
            // The kernel is using one of the pages, or has no free huge page: see madvise(2).
            Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM) => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// Whether MADV_COLLAPSE can do anything here.
fn collapses() -> bool {
    const MODE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    region.owner().fill(0, BYTE, LEN).expect("the owner writes");
    // A large mapping is aligned for huge pages.
    let may = allow_and_collapse(addr(&mapping)).is_ok();
    if !may {
        let mode = read_text(MODE);
        skip("no huge pages for shared memory", at_its_best() && !mode.is_empty() && !mode.contains("[deny]"));
    }
    may
}

/// Foreign code undoes MADV_NOHUGEPAGE. An enabled mapping is revoked all the same, and in a disabled range there is
/// nothing to collapse.
#[test]
fn collapsing_by_foreign_code_that_allows_huge_pages_opens_nothing() {
    support::start();
    if !collapses() {
        return;
    }
    every_case(|strategy, policy, region, mapping| {
        let base = addr(mapping);
        let when = format!("{strategy} {policy:?}");
        allow_and_collapse(base).unwrap_or_else(|e| panic!("{when}: {e}"));
        check_there(mapping, &when);
        assert!(huge(base) > 0, "{when}: nothing was collapsed");
        for _ in 0..2 {
            region.disable().expect("it revokes");
            check_refused(mapping, &when);
            let collapsed = allow_and_collapse(base);
            assert!(collapsed.is_err(), "{when}: {collapsed:?}");
            check_refused(mapping, &when);
            region.enable().expect("it comes back");
            check_there(mapping, &when);
        }
        region
            .reset(|_| {
                let collapsed = allow_and_collapse(base);
                assert!(collapsed.is_err(), "{when}: during a reset: {collapsed:?}");
                assert_eq!(resident(base, LEN), 0, "{when}: mapped during a reset");
            })
            .expect("it resets");
        check_there(mapping, &when);
    });
}

/// Huge pages that the application has allowed while the region was enabled are forbidden again once it is disabled.
/// MADV_COLLAPSE then fails, from this process and from another.
#[test]
fn huge_pages_that_were_allowed_before_are_none_afterwards() {
    support::start();
    if !collapses() {
        return;
    }
    let me = nix::unistd::getpid().as_raw();
    every_case(|strategy, policy, region, mapping| {
        let base = addr(mapping);
        let when = format!("{strategy} {policy:?}");
        for _ in 0..2 {
            allow_and_collapse(base).unwrap_or_else(|e| panic!("{when}: {e}"));
            region.disable().expect("it revokes");
            let here = raw::advise(base, LEN, raw::MADV_COLLAPSE);
            let elsewhere = forking::exit_code(|| i32::from(advise_process(me, base, LEN, raw::MADV_COLLAPSE).is_ok()));
            check_refused(mapping, &when);
            assert!(here.is_err() && elsewhere == 0, "{when}: a revoked mapping was collapsed");
            region.enable().expect("it comes back");
            check_there(mapping, &when);
        }
        allow_and_collapse(base).unwrap_or_else(|e| panic!("{when}: {e}"));
        region
            .reset(|_| {
                let _ = raw::advise(base, LEN, raw::MADV_COLLAPSE);
                assert_eq!(resident(base, LEN), 0, "{when}: mapped during a reset");
            })
            .expect("it resets");
        check_there(mapping, &when);
    });
}

/// Runs khugepaged at full speed, for shared memory too, until it is dropped. Only one test of all processes has it at
/// a time.
struct Khugepaged {
    before: Vec<(String, String)>,
    _one: Flock<File>,
}

impl Khugepaged {
    fn hurry() -> Option<Self> {
        const DIR: &str = "/sys/kernel/mm/transparent_hugepage";
        let one = File::open(format!("{DIR}/shmem_enabled")).ok()?;
        let one = Flock::lock(one, FlockArg::LockExclusive).ok()?;
        let mut settings = Self { before: Vec::new(), _one: one };
        let wanted = [
            ("enabled", "madvise"),
            ("shmem_enabled", "advise"),
            ("khugepaged/max_ptes_none", "511"),
            ("khugepaged/pages_to_scan", "65536"),
            ("khugepaged/alloc_sleep_millisecs", "100"),
            ("khugepaged/scan_sleep_millisecs", "10"),
        ];
        for (name, value) in wanted {
            let path = format!("{DIR}/{name}");
            let text = read_text(&path);
            // If the file lists several words, the one in brackets is set.
            let now =
                text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or(text.trim(), |(now, _)| now);
            fs::write(&path, value).ok()?;
            settings.before.push((path, now.to_owned()));
        }
        Some(settings)
    }
}

impl Drop for Khugepaged {
    fn drop(&mut self) {
        for (path, value) in self.before.iter().rev() {
            if let Err(e) = fs::write(path, value) {
                eprintln!("{path} is not {value} again: {e}");
            }
        }
    }
}

#[test]
fn khugepaged_opens_nothing_and_loses_nothing() {
    support::start();
    if !is_root() {
        return skip("only root can make khugepaged hurry", false);
    }
    let Some(_settings) = Khugepaged::hurry() else {
        let could = at_its_best() && Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled").exists();
        return skip("khugepaged does not serve shared memory here", could);
    };
    every_case(|strategy, policy, region, mapping| {
        if strategy == Strategy::Withdraw {
            // Its owner's view moves, and allows huge pages only until then.
            return;
        }
        let owner = region.owner().as_ptr().expose_provenance();
        // The owner's view allows huge pages, which makes the region's file a candidate; the mappings do not. Asked
        // twice: at the first call khugepaged sees a mapping that does not allow them yet, and does not register the
        // process.
        for _ in 0..2 {
            raw::advise(owner, LEN, libc::MADV_HUGEPAGE).expect("the owner's view may have them");
        }
        let since = Instant::now();
        let mut rounds = 0;
        while huge(owner) == 0 || rounds < 10 {
            let when = format!("{strategy} {policy:?} round {rounds}");
            assert!(
                since.elapsed() < crate::support::patience(Duration::from_secs(30)),
                "{when}: khugepaged did nothing: nothing was tried"
            );
            region.disable().expect("it revokes");
            check_refused(mapping, &when);
            // A page that has become huge is mapped as huge when it is touched.
            (0..LEN).step_by(1 << 20).for_each(|at| assert_eq!(region.owner().read::<u8>(at), Ok(BYTE), "{when}"));
            std::thread::sleep(Duration::from_millis(2));
            check_refused(mapping, &when);
            region.enable().expect("it comes back");
            check_there(mapping, &when);
            // Linux before 6.12 maps what is huge in the file in any mapping that faults (`do_set_pmd`), and this one asked
            // for none: the next revocation takes it away like any other.
            if release() >= (6, 12) {
                assert_eq!(huge(addr(mapping)), 0, "{when}: the mapping asked for none");
            }
            rounds += 1;
        }
    });
}
