//! Model-checked: no notification and no cancellation is lost. A lost one is a deadlock, which loom reports.

use super::*;
use crate::sync::checker::thread;
use crate::sync::explore::{explore, fails_without};

/// Two waiters, one change, one notification.
fn notified() {
    let (event, busy) = (Event::new(), Arc::new(AtomicBool::new(true)));
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let (event, busy) = (event.clone(), busy.clone());
            // Relaxed: the event alone must order the change before the look.
            thread::spawn(move || event.wait_while(|| busy.load(Ordering::Relaxed), None, None))
        })
        .collect();
    busy.store(false, Ordering::Relaxed);
    event.notify_all();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Waited::Done);
    }
}

/// A waiter whose condition never ends, and one cancellation; then the token's list is empty again.
fn cancelled() {
    let (event, token) = (Event::new(), CancelToken::new());
    let waiter = {
        let (event, token) = (event.clone(), token.clone());
        thread::spawn(move || event.wait_while(|| true, Some(&token), None))
    };
    assert!(token.cancel());
    assert_eq!(waiter.join().unwrap(), Waited::Cancelled);
    assert_eq!(token.0.sleeping_on.lock().len(), 0);
}

/// One token, two waiters on two events, and a notification of one of them in between.
fn cancelled_everywhere() {
    let token = CancelToken::new();
    let events = [Event::new(), Event::new()];
    let waiters = events.clone().map(|event| {
        let token = token.clone();
        thread::spawn(move || event.wait_while(|| true, Some(&token), None))
    });
    events[0].notify_all();
    token.cancel();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), Waited::Cancelled);
    }
}

#[test]
fn no_notification_is_missed() {
    explore(3, notified);
}

#[test]
fn no_cancellation_is_lost() {
    explore(3, cancelled);
}

#[test]
fn one_cancellation_reaches_all_events() {
    explore(3, cancelled_everywhere);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn missing_no_notification_needs_the_generation_first() {
    fails_without(Mutation::GenerationAfterCheck, "sync::wait::model::no_notification_is_missed", &["deadlock"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn missing_no_notification_needs_the_generation_to_advance() {
    fails_without(Mutation::GenerationBump, "sync::wait::model::no_notification_is_missed", &["deadlock"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn losing_no_cancellation_needs_registering_first() {
    fails_without(Mutation::CheckBeforeRegister, "sync::wait::model::no_cancellation_is_lost", &["deadlock"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn losing_no_cancellation_needs_telling_the_waiters() {
    fails_without(Mutation::CancelNotify, "sync::wait::model::no_cancellation_is_lost", &["deadlock"]);
}
