//! Randomised tests: random sequences against models, and everything at once under load.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod fuzz;
mod fuzz_regions;
mod load;
mod pci_properties;
mod stress;
