//! Regions, mappings, guards, pins and groups do what their documentation says.

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod accessors_only;
mod bad_input;
mod bars;
mod copies_outside;
mod device_pins;
mod devices_turned_off;
mod dma_of_dropped_mappings;
mod dropped_devices;
mod dropped_regions;
mod guards;
mod held_up;
mod ioeventfds;
mod limits;
mod memslots;
mod notifiers_and_groups;
mod one_change_path;
mod pins;
mod read_only_regions;
mod reentrant;
mod refused_files;
#[cfg(feature = "safe-mmio")]
mod safe_mmio;
mod split_mappings;
#[cfg(feature = "tracing")]
mod tracing;
mod trimmed_mappings;
mod truncated_files;
mod users_code;
#[cfg(feature = "vm-memory")]
mod vm_memory;
