/*
 * The stub that runs in a target while its page tables are relocated (relocation_stub.py has its bytes; a
 * test assembles this file and compares).
 *
 * Every thread has a copy of this code with data of its own 0x400 bytes behind it. One thread
 * enters at `mover`; all others are stopped by ptrace, with their registers set so that they would enter at
 * `park` if the injector died. From the first to the last mremap no other process is needed: the mover
 * continues by itself, and a thread released early waits for it here, asleep, a millisecond at a time.
 *
 * No stack is used, so the red zone and whatever rsp points to are not touched. Signals are blocked before
 * and opened again at `restore`, when all memory is back in its place. rt_sigtimedwait is the sleep because
 * it is the only one that leaves no restart block behind, which an interrupted call of the program may have.
 */
	.intel_syntax noprefix
	.text
	.set DATA, 0x400		/* from the start of this code */
	/* the thread's data: address of the shared page, signal mask, registers */
	.set D_SHARED, DATA
	.set D_MASK, DATA + 8
	.set D_RAX, DATA + 16
	.set D_RBX, DATA + 24
	.set D_RCX, DATA + 32
	.set D_RDX, DATA + 40
	.set D_RSI, DATA + 48
	.set D_RDI, DATA + 56
	.set D_RBP, DATA + 64
	.set D_R8, DATA + 72
	.set D_R9, DATA + 80
	.set D_R10, DATA + 88
	.set D_R11, DATA + 96
	.set D_R12, DATA + 104
	.set D_R13, DATA + 112
	.set D_R14, DATA + 120
	.set D_R15, DATA + 128
	.set D_RIP, DATA + 136
	.set D_FLAGS, DATA + 144	/* ax: the low flags in ah, the overflow flag in al */
	/* the shared page */
	.set S_STATE, 0			/* 0: not started, 1: memory may be away, 2: done, or never to start */
	.set S_ERROR, 8			/* result of the first mremap that was refused; 0: none */
	.set S_COUNT, 16
	.set S_PAUSE, 24		/* struct timespec: 1 ms */
	.set S_NO_SIGNALS, 40
	.set S_OLD_MODE, 48
	.set S_POLICY_ERROR, 56		/* of get_mempolicy or set_mempolicy; 0: none */
	.set S_NEW_MODE, 64
	.set S_RETRIES, 72		/* number of repeated moves back */
	.set S_NEW_NODES, 128		/* 1024 bits */
	.set S_OLD_NODES, 256
	.set S_TABLE, 512		/* S_COUNT times: address, transit address, bytes */
	.set NODE_BITS, 1025		/* the kernel takes one less */

	.set MREMAP, 25
	.set RT_SIGPROCMASK, 14
	.set RT_SIGTIMEDWAIT, 128
	.set SET_MEMPOLICY, 238
	.set GET_MEMPOLICY, 239

start:
mover:
	mov	rbx, [rip + start + D_SHARED]
	xor	eax, eax
	mov	ecx, 1
	lock cmpxchg [rbx + S_STATE], ecx
	jne	restore			/* a parked thread runs, so the injector died: do nothing */
	mov	eax, GET_MEMPOLICY
	lea	rdi, [rbx + S_OLD_MODE]
	lea	rsi, [rbx + S_OLD_NODES]
	mov	edx, NODE_BITS
	xor	r10d, r10d
	xor	r8d, r8d
	syscall
	mov	[rbx + S_POLICY_ERROR], rax
	test	rax, rax
	jne	done
	mov	eax, SET_MEMPOLICY
	mov	rdi, [rbx + S_NEW_MODE]
	lea	rsi, [rbx + S_NEW_NODES]
	mov	edx, NODE_BITS
	syscall
	mov	[rbx + S_POLICY_ERROR], rax
	test	rax, rax
	jne	done
	xor	r12d, r12d
away:
	cmp	r12, [rbx + S_COUNT]
	jae	back
	lea	r14, [r12 + r12 * 2]
	lea	r14, [rbx + r14 * 8 + S_TABLE]
	mov	rdi, [r14]
	mov	rsi, [r14 + 16]
	mov	rdx, rsi
	mov	r10d, 3			/* MREMAP_MAYMOVE | MREMAP_FIXED */
	mov	r8, [r14 + 8]
	mov	eax, MREMAP
	syscall
	cmp	rax, [r14 + 8]
	jne	refused
	inc	r12
	jmp	away
refused:				/* this segment has not moved: move the others back */
	mov	[rbx + S_ERROR], rax
back:
	test	r12, r12
	je	home
	lea	r14, [r12 + r12 * 2]
	lea	r14, [rbx + r14 * 8 + S_TABLE - 24]
again:
	mov	rdi, [r14 + 8]
	mov	rsi, [r14 + 16]
	mov	rdx, rsi
	mov	r10d, 3
	mov	r8, [r14]
	mov	eax, MREMAP
	syscall
	cmp	rax, [r14]
	je	next
	inc	qword ptr [rbx + S_RETRIES]	/* out of memory at the moment: the only option is to retry */
	mov	eax, RT_SIGTIMEDWAIT
	lea	rdi, [rbx + S_NO_SIGNALS]
	xor	esi, esi
	lea	rdx, [rbx + S_PAUSE]
	mov	r10d, 8
	syscall
	jmp	again
next:
	dec	r12
	jmp	back
home:
	mov	eax, SET_MEMPOLICY
	movsxd	rdi, dword ptr [rbx + S_OLD_MODE]
	lea	rsi, [rbx + S_OLD_NODES]
	mov	edx, NODE_BITS
	syscall
done:
	mov	dword ptr [rbx + S_STATE], 2
	mov	r12d, 1000		/* the injector, if it lives, stops this thread now */
linger:
	mov	eax, RT_SIGTIMEDWAIT
	lea	rdi, [rbx + S_NO_SIGNALS]
	xor	esi, esi
	lea	rdx, [rbx + S_PAUSE]
	mov	r10d, 8
	syscall
	dec	r12d
	jne	linger
	jmp	restore

park:
	mov	rbx, [rip + start + D_SHARED]
	xor	eax, eax
	mov	ecx, 2
	lock cmpxchg [rbx + S_STATE], ecx	/* not started: it must not start */
parked:
	cmp	dword ptr [rbx + S_STATE], 2
	je	restore
	mov	eax, RT_SIGTIMEDWAIT
	lea	rdi, [rbx + S_NO_SIGNALS]
	xor	esi, esi
	lea	rdx, [rbx + S_PAUSE]
	mov	r10d, 8
	syscall
	jmp	parked

restore:
	mov	eax, RT_SIGPROCMASK
	mov	edi, 2			/* SIG_SETMASK */
	lea	rsi, [rip + start + D_MASK]
	xor	edx, edx
	mov	r10d, 8
	syscall
	mov	rbx, [rip + start + D_RBX]
	mov	rcx, [rip + start + D_RCX]
	mov	rdx, [rip + start + D_RDX]
	mov	rsi, [rip + start + D_RSI]
	mov	rdi, [rip + start + D_RDI]
	mov	rbp, [rip + start + D_RBP]
	mov	r8, [rip + start + D_R8]
	mov	r9, [rip + start + D_R9]
	mov	r10, [rip + start + D_R10]
	mov	r11, [rip + start + D_R11]
	mov	r12, [rip + start + D_R12]
	mov	r13, [rip + start + D_R13]
	mov	r14, [rip + start + D_R14]
	mov	r15, [rip + start + D_R15]
	mov	rax, [rip + start + D_FLAGS]
	add	al, 0x7f		/* overflows when it was 1 */
	sahf				/* all other flags that arithmetic changes */
	mov	rax, [rip + start + D_RAX]
	jmp	[rip + start + D_RIP]
end:
