//! The interrupted thread's registers, as the kernel saved them.

use crate::raw::table::Registers;
use nix::libc::mcontext_t;

/// Register 31 would be the stack pointer or zero; no operand is ever put there.
fn index(register: u8) -> usize {
    usize::from(register % 31)
}

impl Registers for mcontext_t {
    fn program_counter(&self) -> usize {
        usize::from_ne_bytes(self.pc.to_ne_bytes())
    }

    fn set_program_counter(&mut self, to: usize) {
        self.pc = u64::from_ne_bytes(to.to_ne_bytes());
    }

    fn get(&self, number: u8) -> usize {
        usize::from_ne_bytes(self.regs[index(number)].to_ne_bytes())
    }

    fn set(&mut self, number: u8, value: i8) {
        self.regs[index(number)] = i64::from(value) as u64;
    }
}
