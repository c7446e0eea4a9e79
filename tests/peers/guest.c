// A virtual machine whose guest looks for the owner's stamp and stores poison, by a memslot over the mapping.
//
// guest LEN STAMP. The guest is never told anything: its vCPU is in KVM_RUN all the time.
#include "peer.h"
#include "log.h"
#include <linux/kvm.h>
#include <sys/ioctl.h>

// Real mode; ds is the window, es the guest's own memory. eax: what was loaded; edx: the stamp; ebx: poison.
static const unsigned char code[] = {
	0x66, 0xa1, 0x00, 0x00,             // load the window's first word
	0x66, 0x39, 0xd0,                   // the stamp?
	0x75, 0x06,                         // no
	0x26, 0x66, 0xff, 0x06, 0x08, 0x80, // count it
	0x66, 0x89, 0x1e, 0x10, 0x00,       // store poison
	0x26, 0x66, 0xff, 0x06, 0x04, 0x80, // count the round
	0xeb, 0xe4,
};

static volatile uint32_t *ram;
static struct log *log_at;

static void *watch(void *unused)
{
	for (;; usleep(500)) {
		log_at->passes = log_at->made = ram[0x8004 / 4];
		if (ram[0x8008 / 4] != log_at->wrong)
			violation(log_at, 0, ram[0x8008 / 4], 0);
	}
	return unused;
}

int main(int count, char **args)
{
	(void)count;
	size_t len = strtoul(args[1], 0, 0);
	uint32_t stamp = (uint32_t)strtoul(args[2], 0, 0);
	log_at = log_of(len);
	char *at = map_window(WINDOW, len, PROT_READ | PROT_WRITE, MAP_SHARED);
	log_at->at = (uint64_t)at;
	ram = mmap(0, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy((char *)ram + 0x1000, code, sizeof code);
	int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	struct kvm_userspace_memory_region slots[] = {
		{.slot = 0, .guest_phys_addr = 0, .memory_size = 0x10000, .userspace_addr = (uint64_t)ram},
		{.slot = 1, .guest_phys_addr = 0x20000, .memory_size = len, .userspace_addr = (uint64_t)at},
	};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slots[0]) < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slots[1]) < 0)
		return 5;
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	struct kvm_sregs sregs;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return 6;
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.es.base = sregs.es.selector = 0;
	sregs.ds.base = 0x20000;
	sregs.ds.selector = 0x2000;
	struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rdx = stamp, .rbx = (uint32_t)~stamp};
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		return 7;
	pthread_t watcher;
	pthread_create(&watcher, 0, watch, 0);
	struct kvm_run *run = mmap(0, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	for (;;) {
		int result = ioctl(vcpu, KVM_RUN, 0);
		// Where KVM emulates the instruction, an access without memory is one of a device.
		if (result >= 0 && run->exit_reason == KVM_EXIT_MMIO) {
			memset(run->mmio.data, 0xff, sizeof run->mmio.data);
		} else if (result >= 0 || (errno != EFAULT && errno != EINTR)) {
			fprintf(stderr, "guest: KVM_RUN: %d, %s, exit %u\n", result, strerror(errno), run->exit_reason);
			return 8;
		}
		log_at->refused++;
	}
}
