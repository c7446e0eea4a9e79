//! A waiter returns when its condition ends, when it is cancelled, or at its deadline.

use super::*;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[test]
fn a_condition_that_is_over_needs_no_sleep_and_wins_over_cancellation() {
    let token = CancelToken::new();
    token.cancel();
    assert_eq!(Event::new().wait_while(|| false, Some(&token), None), Waited::Done);
    assert_eq!(Event::new().wait_while(|| true, Some(&token), None), Waited::Cancelled);
}

#[test]
fn a_deadline_ends_the_wait_and_not_before() {
    let start = Instant::now();
    let deadline = start + Duration::from_millis(30);
    assert_eq!(Event::new().wait_while(|| true, None, Some(deadline)), Waited::TimedOut);
    assert!(start.elapsed() >= Duration::from_millis(30), "gave up after {:?}", start.elapsed());
}

#[test]
fn one_cancel_reaches_every_thread_on_every_event() {
    let token = CancelToken::new();
    let events = [Event::new(), Event::new()];
    let (ended, ends) = mpsc::channel();
    for event in events.iter().cycle().take(6) {
        let (event, token, ended) = (event.clone(), token.clone(), ended.clone());
        thread::spawn(move || ended.send(event.wait_while(|| true, Some(&token), None)));
    }
    while token.0.sleeping_on.lock().len() < 6 {
        thread::yield_now();
    }
    assert!(token.cancel());
    assert!(!token.cancel(), "the second call did nothing");
    for _ in 0..6 {
        assert_eq!(ends.recv_timeout(Duration::from_secs(20)), Ok(Waited::Cancelled));
    }
    assert_eq!(token.0.sleeping_on.lock().len(), 0, "every waiter took its registration back");
}
