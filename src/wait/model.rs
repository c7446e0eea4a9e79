//! Model-checked: no notification and no cancellation is lost. A lost one is a deadlock, which loom reports.

use super::*;
use crate::sync::sabotage;
use loom::thread;

fn explore(broken: Option<Mutation>, model: impl Fn() + Sync + Send + 'static) {
    sabotage(broken);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

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
    explore(None, notified);
}

#[test]
#[should_panic(expected = "deadlock")]
fn no_notification_is_missed_fails_if_the_generation_is_read_too_late() {
    explore(Some(Mutation::GenerationAfterCheck), notified);
}

#[test]
#[should_panic(expected = "deadlock")]
fn no_notification_is_missed_fails_if_the_generation_stands_still() {
    explore(Some(Mutation::GenerationBump), notified);
}

#[test]
fn no_cancellation_is_lost() {
    explore(None, cancelled);
}

#[test]
fn one_cancellation_reaches_all_events() {
    explore(None, cancelled_everywhere);
}

#[test]
#[should_panic(expected = "deadlock")]
fn no_cancellation_is_lost_fails_if_the_token_is_looked_at_before_registering() {
    explore(Some(Mutation::CheckBeforeRegister), cancelled);
}

#[test]
#[should_panic(expected = "deadlock")]
fn no_cancellation_is_lost_fails_if_nobody_is_notified() {
    explore(Some(Mutation::CancelNotify), cancelled);
}
