//! Model-checked: the order of a window's moves, against a peer that accesses it meanwhile.
//!
//! Real code: [`Transfer`]. The fake files are a kernel with a few pages, each of which is a part. Modelled of it: an access
//! is made to the page that the mapping has, under the lock of its page table, and adds the file's page to the mapping
//! first if there is none; taking a page out of the file takes it out of all mappings under that lock; splice(2) refers to
//! the page that the file has, and to a page of zeroes where the file's page was never written. A page comes back with its
//! content. Not modelled: a peer that changes the file itself (`tests/peers/hostile.rs`).
//!
//! A page that is copied while a peer may still store to it is what the twins lose stores by. Each property is also run
//! without the step that it rests on.

use super::transfer::{Files, Rest, Transfer};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::checker::sync::RwLock;
use crate::sync::checker::thread;
use crate::sync::explore::{explore, fails_without};
use crate::sync::{Arc, Mutation, broken};
use crate::sys::SysError;
use nix::errno::Errno;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

const PAGES: usize = 2;
const ONES: u64 = u64::MAX;
/// The content of each page at the start.
const BEFORE: u64 = 1;

/// The content of a page, which an access reaches and the pipe refers to.
type Page = Arc<AtomicU64>;

/// One page of the window, in the file and in the page tables of the peer as one.
type Slot = RwLock<Option<Page>>;

struct Kernel {
    window: [Slot; PAGES],
    vault: Mutex<[u64; PAGES]>,
    /// All-ones in place of nothing.
    ones: bool,
    /// The calls that succeed before one fails, and the calls that fail then.
    fails: Mutex<(usize, usize)>,
}

impl Kernel {
    fn new(ones: bool, fails: (usize, usize)) -> Self {
        let page = |_| RwLock::new(Some(Arc::new(AtomicU64::new(BEFORE))));
        let vault = Mutex::new([0; PAGES]);
        Self { window: [0, 1].map(page), vault, ones, fails: Mutex::new(fails) }
    }

    /// A load by a peer. `None`: SIGBUS.
    fn load(&self, page: usize) -> Option<u64> {
        self.window[page].read().expect("no panic").as_ref().map(|page| page.load(Ordering::Relaxed))
    }

    /// A store by a peer. False: SIGBUS.
    fn store(&self, page: usize, value: u64) -> bool {
        let slot = self.window[page].read().expect("no panic");
        slot.as_ref().map(|page| page.store(value, Ordering::Relaxed)).is_some()
    }

    /// The owner's view of the vault.
    fn content(&self) -> [u64; PAGES] {
        *self.vault.lock().expect("no panic")
    }

    fn set(&self, page: usize, with: Option<u64>) {
        *self.window[page].write().expect("no panic") = with.map(|value| Arc::new(AtomicU64::new(value)));
    }

    fn call(&self) -> Result<(), SysError> {
        let mut fails = self.fails.lock().expect("no panic");
        match *fails {
            (0, 0) => Ok(()),
            (0, times) => {
                *fails = (0, times - 1);
                Err(SysError::new("model", Errno::ENOMEM))
            }
            (skip, times) => {
                *fails = (skip - 1, times);
                Ok(())
            }
        }
    }
}

impl Files for Kernel {
    type Pipes = Mutex<VecDeque<Page>>;

    fn part(&self) -> usize {
        1
    }

    fn check(&self) -> Result<(), SysError> {
        self.call()
    }

    fn take_pipes(&self) -> Result<Self::Pipes, SysError> {
        self.call().map(|()| Mutex::default())
    }

    fn let_go(&self, pipes: &Self::Pipes) {
        pipes.lock().expect("no panic").clear();
    }

    fn give_back(&self, pipes: Self::Pipes) {
        assert!(pipes.lock().expect("no panic").is_empty(), "pipes with pages are given back");
    }

    fn are_there(&self, _: &Self::Pipes) -> bool {
        true
    }

    fn hold(&self, pipes: &Self::Pipes, part: Range<usize>) -> Result<usize, SysError> {
        self.call()?;
        let page = self.window[part.start].read().expect("no panic").clone();
        let held = if broken(Mutation::Unwritten) { page.map(|_| Arc::new(AtomicU64::new(0))) } else { page };
        let len = usize::from(held.is_some());
        pipes.lock().expect("no panic").extend(held);
        Ok(len)
    }

    fn take_out(&self, part: Range<usize>) -> Result<(), SysError> {
        self.call()?;
        // A hole: the first access makes a page of zeroes.
        self.set(part.start, self.ones.then_some(0));
        Ok(())
    }

    fn refuse(&self, part: Range<usize>) {
        if self.ones {
            // In the page that is there: a peer may have it.
            assert!(self.store(part.start, ONES), "there is a page");
        }
    }

    fn copy(&self, pipes: &Self::Pipes, part: Range<usize>) -> Result<usize, SysError> {
        self.call()?;
        let page = pipes.lock().expect("no panic").pop_front().expect("the pipe has the part");
        self.vault.lock().expect("no panic")[part.start] = page.load(Ordering::Relaxed);
        Ok(1)
    }

    fn clear(&self, part: Range<usize>) -> Result<(), SysError> {
        part.into_iter().for_each(|page| self.vault.lock().expect("no panic")[page] = 0);
        Ok(())
    }

    fn write(&self, part: Range<usize>) -> Result<(), SysError> {
        self.call()?;
        self.set(part.start, Some(self.content()[part.start]));
        Ok(())
    }

    fn cut(&self) -> Result<(), SysError> {
        self.call()
    }
}

type Model = Arc<Transfer<Kernel>>;

fn window(ones: bool, fails: (usize, usize)) -> Model {
    Arc::new(Transfer::new(Kernel::new(ones, fails), PAGES))
}

/// A peer that stores 2 and 3 to each page, the last first. Returns the value that each page has by its stores.
fn storing(window: &Model) -> thread::JoinHandle<[u64; PAGES]> {
    let window = Arc::clone(window);
    thread::spawn(move || {
        let mut last = [BEFORE; PAGES];
        for page in (0..PAGES).rev() {
            for value in 2..=3 {
                if window.files.store(page, value) {
                    last[page] = value;
                }
            }
        }
        last
    })
}

/// Nothing of the window is the content any more.
fn is_out_of_reach(window: &Model) {
    for page in 0..PAGES {
        let refused = window.files.ones.then_some(ONES);
        assert_eq!(window.files.load(page), refused, "page {page} after the emptying");
    }
}

/// Under Sigbus each store is kept that returned at all.
#[test]
fn the_model_loses_no_store() {
    explore(3, || {
        let window = window(false, (0, 0));
        let peer = storing(&window);
        let rest = &mut None;
        window.empty(rest).expect("nothing fails");
        is_out_of_reach(&window);
        let stored = peer.join().expect("no panic");
        assert_eq!(window.files.content(), stored, "a store that returned is not in the vault");
        window.fill(rest).expect("nothing fails");
        assert_eq!([0, 1].map(|page| window.files.load(page)), stored.map(Some), "the content is back");
    });
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn the_model_loses_a_store_if_the_copy_comes_first() {
    fails_without(Mutation::CopyEarly, "window::model::the_model_loses_no_store", &["is not in the vault"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn the_model_loses_all_if_the_pages_are_held_too_late() {
    fails_without(Mutation::HoldLate, "window::model::the_model_loses_no_store", &["is not in the vault"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn the_model_loses_a_store_to_a_page_that_was_never_written() {
    fails_without(Mutation::Unwritten, "window::model::the_model_loses_no_store", &["is not in the vault"]);
}

/// With ones, a store is kept that returned before the emptying; one that is made meanwhile may go nowhere.
#[test]
fn the_model_refuses_by_ones_when_it_returns() {
    explore(3, || {
        let window = window(true, (0, 0));
        assert!(window.files.store(1, 2), "enabled");
        let its = Arc::clone(&window);
        let peer = thread::spawn(move || its.files.load(1));
        window.empty(&mut None).expect("nothing fails");
        is_out_of_reach(&window);
        assert_eq!(window.files.content(), [BEFORE, 2], "a store that returned is not in the vault");
        let seen = peer.join().expect("no panic");
        assert!([Some(2), Some(0), Some(ONES)].contains(&seen), "{seen:?} is in the page");
        window.fill(&mut None).expect("nothing fails");
        assert_eq!([0, 1].map(|page| window.files.load(page)), [Some(BEFORE), Some(2)], "the content is back");
    });
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn the_model_notices_ones_that_come_too_late() {
    let test = "window::model::the_model_refuses_by_ones_when_it_returns";
    fails_without(Mutation::OnesLate, test, &["after the emptying"]);
}

/// While the window is filled a load gets the content, or nothing yet; a store is kept.
#[test]
fn the_model_gives_content_or_nothing_while_it_fills() {
    explore(3, || {
        let window = window(false, (0, 0));
        window.empty(&mut None).expect("nothing fails");
        *window.files.vault.lock().expect("no panic") = [7, 7];
        let its = Arc::clone(&window);
        let peer = thread::spawn(move || {
            let seen = its.files.load(0);
            assert!([None, Some(7)].contains(&seen), "{seen:?} is no content");
            (its.files.store(0, 8), its.files.store(1, 8))
        });
        window.fill(&mut None).expect("nothing fails");
        let stored = peer.join().expect("no panic");
        let expected = [stored.0, stored.1].map(|stored| Some(if stored { 8 } else { 7 }));
        assert_eq!([0, 1].map(|page| window.files.load(page)), expected, "a store that returned is lost");
    });
}

/// Each call fails in turn, alone and with the two after it. Then the window is full, or the next try goes on; the next
/// emptying and filling succeed, and no store that returned is lost.
fn whatever_fails(change: fn(&Model, &mut Rest<Kernel>) -> Result<(), SysError>, empty_before: bool) {
    for skip in 0..14 {
        for times in [1, 3] {
            explore(2, move || {
                let window = window(false, (0, 0));
                let rest = &mut None;
                if empty_before {
                    window.empty(rest).expect("nothing fails yet");
                }
                *window.files.fails.lock().expect("no panic") = (skip, times);
                let peer = storing(&window);
                let did = change(&window, rest);
                let is_done = if empty_before { window.is_full() } else { window.is_empty() };
                assert!(did.is_err() || is_done, "a failure is not told");
                *window.files.fails.lock().expect("no panic") = (0, 0);
                window.empty(rest).expect("nothing fails any more");
                is_out_of_reach(&window);
                let stored = peer.join().expect("no panic");
                assert_eq!(window.files.content(), stored, "a store that returned is not in the vault");
                window.fill(rest).expect("nothing fails any more");
                assert_eq!([0, 1].map(|page| window.files.load(page)), stored.map(Some), "the content is back");
            });
        }
    }
}

#[test]
fn the_model_loses_no_store_whatever_call_of_an_emptying_fails() {
    whatever_fails(|window, rest| window.empty(rest), false);
}

#[test]
fn the_model_loses_no_store_whatever_call_of_a_filling_fails() {
    whatever_fails(|window, rest| window.fill(rest), true);
}

/// An emptying that is given up is undone.
#[test]
fn the_model_undoes_an_emptying_that_is_given_up() {
    explore(2, || {
        let window = window(false, (0, 0));
        let its = Arc::clone(&window);
        let changer = thread::spawn(move || its.abandon(true));
        let peer = storing(&window);
        let rest = &mut None;
        let did = window.empty(rest);
        assert!(if did.is_ok() { window.is_empty() } else { window.is_full() }, "{did:?}, half-done");
        changer.join().expect("no panic");
        let stored = peer.join().expect("no panic");
        window.abandon(false);
        window.empty(rest).expect("nothing fails");
        assert_eq!(window.files.content(), stored, "a store that returned is not in the vault");
    });
}
