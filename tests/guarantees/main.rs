//! The guarantees G1 to G6 and G8, each over every strategy, policy and backing. G7, the ways around a mapping, is in
//! `kernel/`.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod busy_is_not_disabled;
mod g1_revoked_means_revoked;
mod g2_nothing_is_lost;
mod g3_access_never_kills;
mod g4_bounded_g5_no_deadlock;
mod g6_nowait_never_sleeps;
mod g8_together_or_not_at_all;
