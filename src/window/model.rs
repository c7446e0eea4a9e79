//! The order of an emptying, against every interleaving with a peer's stores and with its first access to a page.
//!
//! Modelled of the kernel: a store is made to the page that the mapping has, under the lock of its page table, and adds the
//! page of the file to the mapping first if the mapping has none; taking a page out of the file takes it out of all
//! mappings under that lock; splice(2) refers to the page that the file has, and to a page of zeroes where the file's page
//! was never written. The twins leave a step out or do it at another time, and lose a store.

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, RwLock};

/// The content of a page, which a store writes to and the pipe refers to.
type Page = Arc<AtomicU64>;

/// The page table entry and the page cache as one: the page that a store gets.
struct File {
    page: RwLock<Option<Page>>,
    /// Never written: the pipe would get zeroes in its place.
    fresh: bool,
}

/// When the steps are done, and whether all are.
#[derive(Clone, Copy)]
enum Order {
    AsItIs,
    CopyBeforeEmptying,
    HoldAfterEmptying,
    NotWrittenBefore,
}

impl File {
    /// A store by a peer. False: SIGBUS.
    fn store(&self, value: u64) -> bool {
        match &*self.page.read().expect("no panic") {
            Some(page) => {
                page.store(value, Ordering::Relaxed);
                true
            }
            None => false,
        }
    }

    /// splice(2) from the file to a pipe.
    fn hold(&self) -> Option<Page> {
        let page = self.page.read().expect("no panic").clone();
        if self.fresh { page.map(|_| Arc::new(AtomicU64::new(0))) } else { page }
    }

    /// ftruncate(2).
    fn drop_page(&self) {
        *self.page.write().expect("no panic") = None;
    }
}

/// What the vault has after an emptying.
fn empty(file: &File, order: Order) -> u64 {
    let copy = |held: Option<Page>| held.map_or(0, |page| page.load(Ordering::Relaxed));
    match order {
        Order::AsItIs | Order::NotWrittenBefore => {
            let held = file.hold();
            file.drop_page();
            copy(held)
        }
        Order::CopyBeforeEmptying => {
            let vault = copy(file.hold());
            file.drop_page();
            vault
        }
        Order::HoldAfterEmptying => {
            file.drop_page();
            copy(file.hold())
        }
    }
}

fn no_store_is_lost(order: Order) {
    loom::model(move || {
        let fresh = matches!(order, Order::NotWrittenBefore);
        let file = Arc::new(File { page: RwLock::new(Some(Arc::new(AtomicU64::new(0)))), fresh });
        let its = Arc::clone(&file);
        let peer = loom::thread::spawn(move || (1..=2).take_while(|value| its.store(*value)).last().unwrap_or(0));
        let vault = empty(&file, order);
        let returned = peer.join().expect("no panic");
        assert_eq!(vault, returned, "a store that returned is not in the vault");
        assert!(!file.store(3), "reached after the emptying");
    });
}

#[test]
fn the_model_loses_no_store() {
    no_store_is_lost(Order::AsItIs);
}

#[test]
#[should_panic(expected = "is not in the vault")]
fn the_model_loses_a_store_if_the_copy_comes_first() {
    no_store_is_lost(Order::CopyBeforeEmptying);
}

#[test]
#[should_panic(expected = "is not in the vault")]
fn the_model_loses_all_if_the_pages_are_held_too_late() {
    no_store_is_lost(Order::HoldAfterEmptying);
}

#[test]
#[should_panic(expected = "is not in the vault")]
fn the_model_loses_a_store_to_a_page_that_was_never_written() {
    no_store_is_lost(Order::NotWrittenBefore);
}
