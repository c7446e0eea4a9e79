//! Tests that measure or stop threads, which other tests would disturb. This binary has nothing else in it.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod displaced_handlers;
mod signal_storms;
mod stopped_monitor;
mod waiting_costs_nothing;
