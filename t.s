	.file	"<string>"
	.section	.rodata,"a",@progbits
	.p2align	6, 0x0
.LCPI0_0:
	.long	0
	.long	1
	.long	2
	.long	3
	.long	4
	.long	5
	.long	6
	.long	7
	.long	8
	.long	9
	.long	10
	.long	11
	.long	12
	.long	13
	.long	14
	.long	15
	.section	.ltext,"axl",@progbits
	.globl	_ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx
	.p2align	4
	.type	_ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx,@function
_ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx:
	decq	%rdx
	cmpq	$13, %rdx
	ja	.LBB0_95
	pushq	%rbp
	pushq	%r15
	pushq	%r14
	pushq	%r13
	pushq	%r12
	pushq	%rbx
	movq	80(%rsp), %rsi
	movq	72(%rsp), %r10
	movq	64(%rsp), %rax
	movq	56(%rsp), %r11
	movabsq	$.LJTI0_0, %rbx
	jmpq	*(%rbx,%rdx,8)
.LBB0_2:
	cmpq	$2, %rcx
	movl	$1, %r10d
	vxorps	%xmm0, %xmm0, %xmm0
	cmovgeq	%rcx, %r10
	movl	%r10d, %edx
	andl	$7, %edx
	cmpq	$8, %rcx
	jge	.LBB0_88
	vxorps	%xmm1, %xmm1, %xmm1
	jmp	.LBB0_92
.LBB0_24:
	vxorps	%xmm4, %xmm4, %xmm4
	cmpq	$2, %rcx
	movl	$1, %edx
	cmovgeq	%rcx, %rdx
	jge	.LBB0_32
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm20, %xmm20, %xmm20
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm21, %xmm21, %xmm21
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm22, %xmm22, %xmm22
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm23, %xmm23, %xmm23
	vxorps	%xmm16, %xmm16, %xmm16
	jmp	.LBB0_35
.LBB0_10:
	cmpq	$2, %rcx
	movl	$1, %ebx
	vxorps	%xmm0, %xmm0, %xmm0
	cmovgeq	%rcx, %rbx
	movl	%ebx, %edx
	andl	$3, %edx
	cmpq	$4, %rcx
	jge	.LBB0_67
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm6, %xmm6, %xmm6
	jmp	.LBB0_70
.LBB0_29:
	cmpq	$2, %rcx
	movl	$1, %edx
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm23, %xmm23, %xmm23
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm20, %xmm20, %xmm20
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm21, %xmm21, %xmm21
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm22, %xmm22, %xmm22
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm24, %xmm24, %xmm24
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm25, %xmm25, %xmm25
	vxorps	%xmm12, %xmm12, %xmm12
	cmovgeq	%rcx, %rdx
	.p2align	4
.LBB0_30:
	vbroadcastss	4(%r8), %zmm29
	vmovups	(%r11), %zmm26
	vmovups	64(%r11), %zmm27
	vbroadcastss	8(%r8), %zmm30
	vbroadcastss	16(%r8), %zmm31
	vbroadcastss	(%r8), %zmm28
	subq	$-128, %r11
	vfmadd231ps	%zmm26, %zmm29, %zmm15
	vfmadd231ps	%zmm29, %zmm27, %zmm1
	vbroadcastss	12(%r8), %zmm29
	vfmadd231ps	%zmm26, %zmm30, %zmm14
	vfmadd231ps	%zmm30, %zmm27, %zmm2
	vbroadcastss	24(%r8), %zmm30
	vfmadd231ps	%zmm26, %zmm31, %zmm18
	vfmadd231ps	%zmm31, %zmm27, %zmm4
	vbroadcastss	40(%r8), %zmm31
	vfmadd231ps	%zmm26, %zmm28, %zmm13
	vfmadd231ps	%zmm28, %zmm27, %zmm0
	vfmadd231ps	%zmm26, %zmm29, %zmm16
	vfmadd231ps	%zmm29, %zmm27, %zmm3
	vbroadcastss	20(%r8), %zmm29
	vfmadd231ps	%zmm26, %zmm30, %zmm23
	vfmadd231ps	%zmm30, %zmm27, %zmm6
	vbroadcastss	32(%r8), %zmm30
	vfmadd231ps	%zmm26, %zmm31, %zmm22
	vfmadd231ps	%zmm31, %zmm27, %zmm10
	vfmadd231ps	%zmm26, %zmm29, %zmm19
	vfmadd231ps	%zmm29, %zmm27, %zmm5
	vbroadcastss	28(%r8), %zmm29
	vfmadd231ps	%zmm26, %zmm30, %zmm20
	vfmadd231ps	%zmm30, %zmm27, %zmm8
	vbroadcastss	48(%r8), %zmm30
	vfmadd231ps	%zmm26, %zmm29, %zmm17
	vfmadd231ps	%zmm29, %zmm27, %zmm7
	vbroadcastss	36(%r8), %zmm29
	vfmadd231ps	%zmm26, %zmm30, %zmm25
	vfmadd231ps	%zmm27, %zmm30, %zmm12
	vfmadd231ps	%zmm26, %zmm29, %zmm21
	vfmadd231ps	%zmm29, %zmm27, %zmm9
	vbroadcastss	44(%r8), %zmm29
	addq	%r9, %r8
	decq	%rdx
	vfmadd231ps	%zmm26, %zmm29, %zmm24
	vfmadd231ps	%zmm29, %zmm27, %zmm11
	jne	.LBB0_30
	movabsq	$.LCPI0_0, %rcx
	leaq	(%r10,%r10,4), %rdx
	leaq	(%rax,%r10,8), %r8
	vpbroadcastd	%esi, %zmm26
	leaq	(%r10,%r10,8), %r9
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm27
	leaq	(%r10,%r10,2), %rcx
	leaq	(%rax,%rdx,2), %r11
	subq	%r10, %r8
	vpcmpgtd	%zmm27, %zmm26, %k1
	vmovups	%zmm13, (%rax) {%k1}
	vmovups	%zmm15, (%r10,%rax) {%k1}
	vmovups	%zmm14, (%rax,%r10,2) {%k1}
	vpbroadcastd	%esi, %zmm14
	vmovups	%zmm16, (%rax,%rcx) {%k1}
	vmovups	%zmm18, (%rax,%r10,4) {%k1}
	vmovups	%zmm19, (%rax,%rdx) {%k1}
	vmovups	%zmm23, (%rax,%rcx,2) {%k1}
	vmovups	%zmm17, (%r8) {%k1}
	vmovups	%zmm20, (%rax,%r10,8) {%k1}
	vmovups	%zmm21, (%rax,%r9) {%k1}
	vmovups	%zmm22, (%rax,%rdx,2) {%k1}
	vmovups	%zmm24, (%r10,%r11) {%k1}
	vmovups	%zmm25, (%rax,%rcx,4) {%k1}
	vpcmpgtd	%zmm27, %zmm14, %k1
	vmovups	%zmm0, 64(%rax) {%k1}
	vmovups	%zmm1, 64(%r10,%rax) {%k1}
	vmovups	%zmm2, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm3, 64(%rax,%rcx) {%k1}
	vmovups	%zmm4, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm5, 64(%rax,%rdx) {%k1}
	vmovups	%zmm6, 64(%rax,%rcx,2) {%k1}
	vmovups	%zmm7, 64(%r8) {%k1}
	vmovups	%zmm8, 64(%rax,%r10,8) {%k1}
	vmovups	%zmm9, 64(%rax,%r9) {%k1}
	vmovups	%zmm10, 64(%rax,%rdx,2) {%k1}
	vmovups	%zmm11, 64(%r10,%r11) {%k1}
	vmovups	%zmm12, 64(%rax,%rcx,4) {%k1}
	jmp	.LBB0_94
.LBB0_20:
	vxorps	%xmm3, %xmm3, %xmm3
	cmpq	$2, %rcx
	movl	$1, %edx
	cmovgeq	%rcx, %rdx
	jge	.LBB0_42
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm13, %xmm13, %xmm13
	jmp	.LBB0_45
.LBB0_6:
	cmpq	$2, %rcx
	movl	$1, %ebx
	vxorps	%xmm0, %xmm0, %xmm0
	cmovgeq	%rcx, %rbx
	movl	%ebx, %edx
	andl	$3, %edx
	cmpq	$4, %rcx
	jge	.LBB0_77
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm3, %xmm3, %xmm3
	jmp	.LBB0_80
.LBB0_8:
	cmpq	$2, %rcx
	movl	$1, %ebx
	vxorps	%xmm0, %xmm0, %xmm0
	cmovgeq	%rcx, %rbx
	movl	%ebx, %edx
	andl	$3, %edx
	cmpq	$4, %rcx
	jge	.LBB0_72
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm4, %xmm4, %xmm4
	jmp	.LBB0_75
.LBB0_16:
	vxorps	%xmm2, %xmm2, %xmm2
	cmpq	$2, %rcx
	movl	$1, %edx
	cmovgeq	%rcx, %rdx
	jge	.LBB0_52
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm9, %xmm9, %xmm9
	jmp	.LBB0_55
.LBB0_4:
	cmpq	$2, %rcx
	movl	$1, %ebx
	vxorps	%xmm0, %xmm0, %xmm0
	cmovgeq	%rcx, %rbx
	movl	%ebx, %edx
	andl	$7, %edx
	cmpq	$8, %rcx
	jge	.LBB0_82
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm2, %xmm2, %xmm2
	jmp	.LBB0_86
.LBB0_12:
	vxorps	%xmm0, %xmm0, %xmm0
	cmpq	$2, %rcx
	movl	$1, %edx
	cmovgeq	%rcx, %rdx
	jge	.LBB0_62
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm7, %xmm7, %xmm7
	jmp	.LBB0_65
.LBB0_26:
	cmpq	$2, %rcx
	movl	$1, %edx
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm20, %xmm20, %xmm20
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm21, %xmm21, %xmm21
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm22, %xmm22, %xmm22
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm26, %xmm26, %xmm26
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm23, %xmm23, %xmm23
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm24, %xmm24, %xmm24
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm25, %xmm25, %xmm25
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm27, %xmm27, %xmm27
	vxorps	%xmm13, %xmm13, %xmm13
	cmovgeq	%rcx, %rdx
	.p2align	4
.LBB0_27:
	vbroadcastss	(%r8), %zmm30
	vmovups	(%r11), %zmm29
	vmovups	64(%r11), %zmm28
	vbroadcastss	4(%r8), %zmm31
	subq	$-128, %r11
	vfmadd231ps	%zmm29, %zmm30, %zmm14
	vfmadd231ps	%zmm30, %zmm28, %zmm0
	vbroadcastss	8(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm31, %zmm16
	vfmadd231ps	%zmm31, %zmm28, %zmm1
	vbroadcastss	24(%r8), %zmm31
	vfmadd231ps	%zmm29, %zmm30, %zmm20
	vfmadd231ps	%zmm30, %zmm28, %zmm2
	vbroadcastss	12(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm31, %zmm26
	vfmadd231ps	%zmm31, %zmm28, %zmm6
	vbroadcastss	40(%r8), %zmm31
	vfmadd231ps	%zmm29, %zmm30, %zmm21
	vfmadd231ps	%zmm30, %zmm28, %zmm3
	vbroadcastss	16(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm31, %zmm19
	vfmadd231ps	%zmm31, %zmm28, %zmm10
	vbroadcastss	48(%r8), %zmm31
	vfmadd231ps	%zmm29, %zmm30, %zmm17
	vfmadd231ps	%zmm30, %zmm28, %zmm4
	vbroadcastss	20(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm31, %zmm25
	vfmadd231ps	%zmm31, %zmm28, %zmm12
	vfmadd231ps	%zmm29, %zmm30, %zmm22
	vfmadd231ps	%zmm30, %zmm28, %zmm5
	vbroadcastss	28(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm30, %zmm18
	vfmadd231ps	%zmm30, %zmm28, %zmm7
	vbroadcastss	32(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm30, %zmm23
	vfmadd231ps	%zmm30, %zmm28, %zmm8
	vbroadcastss	36(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm30, %zmm15
	vfmadd231ps	%zmm30, %zmm28, %zmm9
	vbroadcastss	44(%r8), %zmm30
	vfmadd231ps	%zmm29, %zmm30, %zmm24
	vfmadd231ps	%zmm30, %zmm28, %zmm11
	vbroadcastss	52(%r8), %zmm30
	addq	%r9, %r8
	decq	%rdx
	vfmadd231ps	%zmm29, %zmm30, %zmm27
	vfmadd231ps	%zmm28, %zmm30, %zmm13
	jne	.LBB0_27
	movabsq	$.LCPI0_0, %rcx
	leaq	(%rax,%r10,8), %r8
	leaq	(%r10,%r10,4), %rdx
	vpbroadcastd	%esi, %zmm28
	leaq	(%r10,%r10,8), %r9
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm29
	leaq	(%r10,%r10,2), %rcx
	subq	%r10, %r8
	leaq	(%rax,%rdx,2), %r11
	leaq	(%rax,%rcx,4), %rbx
	vpcmpgtd	%zmm29, %zmm28, %k1
	vmovups	%zmm14, (%rax) {%k1}
	vmovups	%zmm16, (%r10,%rax) {%k1}
	vmovups	%zmm20, (%rax,%r10,2) {%k1}
	vmovups	%zmm21, (%rax,%rcx) {%k1}
	vmovups	%zmm17, (%rax,%r10,4) {%k1}
	vmovups	%zmm22, (%rax,%rdx) {%k1}
	vmovups	%zmm26, (%rax,%rcx,2) {%k1}
	vmovups	%zmm18, (%r8) {%k1}
	vmovups	%zmm23, (%rax,%r10,8) {%k1}
	vmovups	%zmm15, (%rax,%r9) {%k1}
	vpbroadcastd	%esi, %zmm15
	vmovups	%zmm19, (%rax,%rdx,2) {%k1}
	vmovups	%zmm24, (%r10,%r11) {%k1}
	vmovups	%zmm25, (%rax,%rcx,4) {%k1}
	vmovups	%zmm27, (%r10,%rbx) {%k1}
	vpcmpgtd	%zmm29, %zmm15, %k1
	vmovups	%zmm0, 64(%rax) {%k1}
	vmovups	%zmm1, 64(%r10,%rax) {%k1}
	vmovups	%zmm2, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm3, 64(%rax,%rcx) {%k1}
	vmovups	%zmm4, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm5, 64(%rax,%rdx) {%k1}
	vmovups	%zmm6, 64(%rax,%rcx,2) {%k1}
	vmovups	%zmm7, 64(%r8) {%k1}
	vmovups	%zmm8, 64(%rax,%r10,8) {%k1}
	vmovups	%zmm9, 64(%rax,%r9) {%k1}
	vmovups	%zmm10, 64(%rax,%rdx,2) {%k1}
	vmovups	%zmm11, 64(%r10,%r11) {%k1}
	vmovups	%zmm12, 64(%rax,%rcx,4) {%k1}
	vmovups	%zmm13, 64(%r10,%rbx) {%k1}
	jmp	.LBB0_94
.LBB0_14:
	vxorps	%xmm0, %xmm0, %xmm0
	cmpq	$2, %rcx
	movl	$1, %edx
	cmovgeq	%rcx, %rdx
	jge	.LBB0_57
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm9, %xmm9, %xmm9
	jmp	.LBB0_60
.LBB0_22:
	vxorps	%xmm3, %xmm3, %xmm3
	cmpq	$2, %rcx
	movl	$1, %edx
	cmovgeq	%rcx, %rdx
	jge	.LBB0_37
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm20, %xmm20, %xmm20
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm21, %xmm21, %xmm21
	vxorps	%xmm15, %xmm15, %xmm15
	jmp	.LBB0_40
.LBB0_18:
	vxorps	%xmm2, %xmm2, %xmm2
	cmpq	$2, %rcx
	movl	$1, %edx
	cmovgeq	%rcx, %rdx
	jge	.LBB0_47
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm12, %xmm12, %xmm12
	jmp	.LBB0_50
.LBB0_32:
	movabsq	$9223372036854775806, %rcx
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm20, %xmm20, %xmm20
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm21, %xmm21, %xmm21
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm22, %xmm22, %xmm22
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm23, %xmm23, %xmm23
	vxorps	%xmm16, %xmm16, %xmm16
	andq	%rdx, %rcx
	.p2align	4
.LBB0_33:
	vbroadcastss	8(%r8), %zmm29
	vmovups	(%r11), %zmm27
	vmovups	64(%r11), %zmm26
	vbroadcastss	12(%r8), %zmm30
	vbroadcastss	4(%r8), %zmm31
	vbroadcastss	(%r8), %zmm28
	vmovups	128(%r11), %zmm25
	vmovups	192(%r11), %zmm24
	addq	$256, %r11
	vfmadd231ps	%zmm27, %zmm29, %zmm12
	vfmadd231ps	%zmm29, %zmm26, %zmm2
	vbroadcastss	16(%r8), %zmm29
	vfmadd231ps	%zmm27, %zmm30, %zmm14
	vfmadd231ps	%zmm30, %zmm26, %zmm3
	vbroadcastss	20(%r8), %zmm30
	vfmadd231ps	%zmm27, %zmm31, %zmm10
	vfmadd231ps	%zmm31, %zmm26, %zmm1
	vbroadcastss	36(%r8), %zmm31
	vfmadd231ps	%zmm27, %zmm28, %zmm4
	vfmadd231ps	%zmm28, %zmm26, %zmm0
	vbroadcastss	12(%r8,%r9), %zmm28
	vfmadd231ps	%zmm27, %zmm29, %zmm15
	vfmadd231ps	%zmm29, %zmm26, %zmm5
	vbroadcastss	24(%r8), %zmm29
	vfmadd231ps	%zmm27, %zmm30, %zmm17
	vfmadd231ps	%zmm30, %zmm26, %zmm6
	vbroadcastss	28(%r8), %zmm30
	vfmadd231ps	%zmm27, %zmm31, %zmm21
	vfmadd231ps	%zmm25, %zmm28, %zmm14
	vfmadd231ps	%zmm28, %zmm24, %zmm3
	vbroadcastss	20(%r8,%r9), %zmm28
	vfmadd231ps	%zmm31, %zmm26, %zmm11
	vfmadd231ps	%zmm27, %zmm29, %zmm18
	vfmadd231ps	%zmm29, %zmm26, %zmm7
	vbroadcastss	32(%r8), %zmm29
	vfmadd231ps	%zmm27, %zmm30, %zmm19
	vfmadd231ps	%zmm30, %zmm26, %zmm8
	vbroadcastss	40(%r8), %zmm30
	vfmadd231ps	%zmm25, %zmm28, %zmm17
	vfmadd231ps	%zmm28, %zmm24, %zmm6
	vbroadcastss	28(%r8,%r9), %zmm28
	vfmadd231ps	%zmm27, %zmm29, %zmm20
	vfmadd231ps	%zmm29, %zmm26, %zmm9
	vbroadcastss	44(%r8), %zmm29
	vfmadd231ps	%zmm27, %zmm30, %zmm22
	vfmadd231ps	%zmm30, %zmm26, %zmm13
	vbroadcastss	36(%r8,%r9), %zmm30
	vfmadd231ps	%zmm25, %zmm28, %zmm19
	vfmadd231ps	%zmm28, %zmm24, %zmm8
	vbroadcastss	40(%r8,%r9), %zmm28
	vfmadd231ps	%zmm27, %zmm29, %zmm23
	vbroadcastss	(%r8,%r9), %zmm27
	vfmadd231ps	%zmm26, %zmm29, %zmm16
	vbroadcastss	4(%r8,%r9), %zmm29
	vfmadd231ps	%zmm25, %zmm30, %zmm21
	vfmadd231ps	%zmm30, %zmm24, %zmm11
	vfmadd231ps	%zmm25, %zmm28, %zmm22
	vfmadd231ps	%zmm28, %zmm24, %zmm13
	vfmadd231ps	%zmm25, %zmm27, %zmm4
	vfmadd231ps	%zmm27, %zmm24, %zmm0
	vbroadcastss	8(%r8,%r9), %zmm27
	vfmadd231ps	%zmm25, %zmm29, %zmm10
	vfmadd231ps	%zmm29, %zmm24, %zmm1
	vbroadcastss	44(%r8,%r9), %zmm29
	vfmadd231ps	%zmm25, %zmm27, %zmm12
	vfmadd231ps	%zmm27, %zmm24, %zmm2
	vbroadcastss	16(%r8,%r9), %zmm27
	vfmadd231ps	%zmm25, %zmm29, %zmm23
	vfmadd231ps	%zmm24, %zmm29, %zmm16
	vfmadd231ps	%zmm25, %zmm27, %zmm15
	vfmadd231ps	%zmm27, %zmm24, %zmm5
	vbroadcastss	24(%r8,%r9), %zmm27
	vfmadd231ps	%zmm25, %zmm27, %zmm18
	vfmadd231ps	%zmm27, %zmm24, %zmm7
	vbroadcastss	32(%r8,%r9), %zmm27
	addq	%r9, %r8
	addq	%r9, %r8
	addq	$-2, %rcx
	vfmadd231ps	%zmm25, %zmm27, %zmm20
	vfmadd231ps	%zmm27, %zmm24, %zmm9
	jne	.LBB0_33
	testb	$1, %dl
	je	.LBB0_36
.LBB0_35:
	vbroadcastss	4(%r8), %zmm27
	vmovups	(%r11), %zmm25
	vmovups	64(%r11), %zmm24
	vbroadcastss	8(%r8), %zmm28
	vbroadcastss	(%r8), %zmm26
	vbroadcastss	24(%r8), %zmm29
	vfmadd231ps	%zmm25, %zmm27, %zmm10
	vfmadd231ps	%zmm27, %zmm24, %zmm1
	vbroadcastss	12(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm12
	vfmadd231ps	%zmm28, %zmm24, %zmm2
	vbroadcastss	16(%r8), %zmm28
	vfmadd231ps	%zmm25, %zmm26, %zmm4
	vfmadd231ps	%zmm26, %zmm24, %zmm0
	vfmadd231ps	%zmm25, %zmm29, %zmm18
	vfmadd231ps	%zmm29, %zmm24, %zmm7
	vfmadd231ps	%zmm25, %zmm27, %zmm14
	vfmadd231ps	%zmm27, %zmm24, %zmm3
	vbroadcastss	20(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm15
	vfmadd231ps	%zmm28, %zmm24, %zmm5
	vbroadcastss	32(%r8), %zmm28
	vfmadd231ps	%zmm25, %zmm27, %zmm17
	vfmadd231ps	%zmm27, %zmm24, %zmm6
	vbroadcastss	28(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm20
	vfmadd231ps	%zmm28, %zmm24, %zmm9
	vbroadcastss	40(%r8), %zmm28
	vfmadd231ps	%zmm25, %zmm27, %zmm19
	vfmadd231ps	%zmm27, %zmm24, %zmm8
	vbroadcastss	36(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm22
	vfmadd231ps	%zmm28, %zmm24, %zmm13
	vfmadd231ps	%zmm25, %zmm27, %zmm21
	vfmadd231ps	%zmm27, %zmm24, %zmm11
	vbroadcastss	44(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm27, %zmm23
	vfmadd231ps	%zmm24, %zmm27, %zmm16
.LBB0_36:
	movabsq	$.LCPI0_0, %rcx
	leaq	(%r10,%r10,4), %rdx
	leaq	(%rax,%r10,8), %r8
	vpbroadcastd	%esi, %zmm24
	leaq	(%r10,%r10,8), %r9
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm25
	leaq	(%r10,%r10,2), %rcx
	leaq	(%rax,%rdx,2), %r11
	subq	%r10, %r8
	vpcmpgtd	%zmm25, %zmm24, %k1
	vmovups	%zmm4, (%rax) {%k1}
	vmovups	%zmm10, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm10
	vmovups	%zmm12, (%rax,%r10,2) {%k1}
	vmovups	%zmm14, (%rax,%rcx) {%k1}
	vmovups	%zmm15, (%rax,%r10,4) {%k1}
	vmovups	%zmm17, (%rax,%rdx) {%k1}
	vmovups	%zmm18, (%rax,%rcx,2) {%k1}
	vmovups	%zmm19, (%r8) {%k1}
	vmovups	%zmm20, (%rax,%r10,8) {%k1}
	vmovups	%zmm21, (%rax,%r9) {%k1}
	vmovups	%zmm22, (%rax,%rdx,2) {%k1}
	vmovups	%zmm23, (%r10,%r11) {%k1}
	vpcmpgtd	%zmm25, %zmm10, %k1
	vmovups	%zmm0, 64(%rax) {%k1}
	vmovups	%zmm1, 64(%r10,%rax) {%k1}
	vmovups	%zmm2, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm3, 64(%rax,%rcx) {%k1}
	vmovups	%zmm5, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm6, 64(%rax,%rdx) {%k1}
	vmovups	%zmm7, 64(%rax,%rcx,2) {%k1}
	vmovups	%zmm8, 64(%r8) {%k1}
	vmovups	%zmm9, 64(%rax,%r10,8) {%k1}
	vmovups	%zmm11, 64(%rax,%r9) {%k1}
	vmovups	%zmm13, 64(%rax,%rdx,2) {%k1}
	vmovups	%zmm16, 64(%r10,%r11) {%k1}
	jmp	.LBB0_94
.LBB0_67:
	movabsq	$9223372036854775806, %r14
	leaq	(%r9,%r9,2), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm6, %xmm6, %xmm6
	addq	$-2, %r14
	andq	%r14, %rbx
	leaq	(%r9,%r9), %r14
	.p2align	4
.LBB0_68:
	vbroadcastss	8(%r8), %zmm14
	vmovups	(%r11), %zmm11
	vmovups	64(%r11), %zmm12
	vbroadcastss	(%r8), %zmm10
	vbroadcastss	4(%r8), %zmm15
	vbroadcastss	12(%r8), %zmm16
	vmovups	128(%r11), %zmm13
	vfmadd231ps	%zmm11, %zmm14, %zmm7
	vfmadd231ps	%zmm14, %zmm12, %zmm3
	vbroadcastss	16(%r8), %zmm14
	vfmadd231ps	%zmm10, %zmm12, %zmm1
	vfmadd231ps	%zmm15, %zmm12, %zmm2
	vfmadd231ps	%zmm16, %zmm12, %zmm4
	vfmadd231ps	%zmm11, %zmm15, %zmm5
	vfmadd231ps	%zmm11, %zmm16, %zmm8
	vfmadd231ps	%zmm11, %zmm10, %zmm0
	vbroadcastss	(%r8,%r9), %zmm15
	vmovups	256(%r11), %zmm16
	vfmadd231ps	%zmm12, %zmm14, %zmm6
	vbroadcastss	4(%r8,%r9), %zmm12
	vfmadd231ps	%zmm11, %zmm14, %zmm9
	vmovups	192(%r11), %zmm11
	vbroadcastss	12(%r8,%r9), %zmm14
	vfmadd231ps	%zmm13, %zmm15, %zmm0
	vfmadd231ps	%zmm15, %zmm11, %zmm1
	vbroadcastss	8(%r8,%r9,2), %zmm15
	vfmadd231ps	%zmm13, %zmm12, %zmm5
	vfmadd231ps	%zmm12, %zmm11, %zmm2
	vbroadcastss	8(%r8,%r9), %zmm12
	vfmadd231ps	%zmm13, %zmm14, %zmm8
	vfmadd231ps	%zmm14, %zmm11, %zmm4
	vbroadcastss	16(%r8,%r9,2), %zmm14
	vfmadd231ps	%zmm13, %zmm12, %zmm7
	vfmadd231ps	%zmm12, %zmm11, %zmm3
	vbroadcastss	16(%r8,%r9), %zmm12
	vfmadd231ps	%zmm16, %zmm15, %zmm7
	vfmadd231ps	%zmm13, %zmm12, %zmm9
	vbroadcastss	4(%r8,%r9,2), %zmm13
	vfmadd231ps	%zmm11, %zmm12, %zmm6
	vmovups	320(%r11), %zmm11
	vbroadcastss	(%r8,%r9,2), %zmm12
	vfmadd231ps	%zmm16, %zmm14, %zmm9
	vfmadd231ps	%zmm11, %zmm14, %zmm6
	vbroadcastss	(%rcx,%r8), %zmm14
	vfmadd231ps	%zmm15, %zmm11, %zmm3
	vbroadcastss	8(%rcx,%r8), %zmm15
	vfmadd231ps	%zmm16, %zmm13, %zmm5
	vfmadd231ps	%zmm13, %zmm11, %zmm2
	vbroadcastss	12(%r8,%r9,2), %zmm13
	vfmadd231ps	%zmm16, %zmm12, %zmm0
	vfmadd231ps	%zmm12, %zmm11, %zmm1
	vmovups	448(%r11), %zmm12
	vfmadd231ps	%zmm14, %zmm12, %zmm1
	vfmadd231ps	%zmm15, %zmm12, %zmm3
	vfmadd231ps	%zmm13, %zmm11, %zmm4
	vfmadd231ps	%zmm16, %zmm13, %zmm8
	vbroadcastss	4(%rcx,%r8), %zmm13
	vmovups	384(%r11), %zmm11
	addq	$512, %r11
	vfmadd231ps	%zmm11, %zmm14, %zmm0
	vbroadcastss	16(%rcx,%r8), %zmm14
	vfmadd231ps	%zmm11, %zmm15, %zmm7
	vfmadd231ps	%zmm11, %zmm13, %zmm5
	vfmadd231ps	%zmm13, %zmm12, %zmm2
	vbroadcastss	12(%rcx,%r8), %zmm13
	addq	%r9, %r8
	addq	%r14, %r8
	addq	%r9, %r8
	addq	$-4, %rbx
	vfmadd231ps	%zmm11, %zmm14, %zmm9
	vfmadd231ps	%zmm12, %zmm14, %zmm6
	vfmadd231ps	%zmm11, %zmm13, %zmm8
	vfmadd231ps	%zmm13, %zmm12, %zmm4
	jne	.LBB0_68
	testq	%rdx, %rdx
	je	.LBB0_71
	.p2align	4
.LBB0_70:
	vbroadcastss	4(%r8), %zmm13
	vmovups	(%r11), %zmm10
	vmovups	64(%r11), %zmm11
	vbroadcastss	(%r8), %zmm12
	vbroadcastss	8(%r8), %zmm15
	vbroadcastss	16(%r8), %zmm14
	subq	$-128, %r11
	vfmadd231ps	%zmm10, %zmm13, %zmm5
	vfmadd231ps	%zmm13, %zmm11, %zmm2
	vbroadcastss	12(%r8), %zmm13
	vfmadd231ps	%zmm10, %zmm12, %zmm0
	vfmadd231ps	%zmm12, %zmm11, %zmm1
	vfmadd231ps	%zmm10, %zmm15, %zmm7
	vfmadd231ps	%zmm15, %zmm11, %zmm3
	vfmadd231ps	%zmm10, %zmm14, %zmm9
	vfmadd231ps	%zmm11, %zmm14, %zmm6
	addq	%r9, %r8
	decq	%rdx
	vfmadd231ps	%zmm10, %zmm13, %zmm8
	vfmadd231ps	%zmm13, %zmm11, %zmm4
	jne	.LBB0_70
.LBB0_71:
	movabsq	$.LCPI0_0, %rcx
	vpbroadcastd	%esi, %zmm10
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm11
	leaq	(%r10,%r10,2), %rcx
	vpcmpgtd	%zmm11, %zmm10, %k1
	vmovups	%zmm0, (%rax) {%k1}
	vmovups	%zmm5, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm5
	vmovups	%zmm7, (%rax,%r10,2) {%k1}
	vmovups	%zmm8, (%rax,%rcx) {%k1}
	vmovups	%zmm9, (%rax,%r10,4) {%k1}
	vpcmpgtd	%zmm11, %zmm5, %k1
	vmovups	%zmm1, 64(%rax) {%k1}
	vmovups	%zmm2, 64(%r10,%rax) {%k1}
	vmovups	%zmm3, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	vmovups	%zmm6, 64(%rax,%r10,4) {%k1}
	jmp	.LBB0_94
.LBB0_42:
	movabsq	$9223372036854775806, %rcx
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm13, %xmm13, %xmm13
	andq	%rdx, %rcx
	.p2align	4
.LBB0_43:
	vbroadcastss	4(%r8), %zmm26
	vbroadcastss	8(%r8), %zmm25
	vmovups	(%r11), %zmm23
	vmovups	64(%r11), %zmm24
	vbroadcastss	(%r8), %zmm22
	vbroadcastss	12(%r8), %zmm27
	vmovups	128(%r11), %zmm21
	vmovups	192(%r11), %zmm20
	addq	$256, %r11
	vfmadd231ps	%zmm23, %zmm26, %zmm9
	vfmadd231ps	%zmm26, %zmm24, %zmm1
	vbroadcastss	20(%r8), %zmm26
	vfmadd231ps	%zmm23, %zmm25, %zmm11
	vfmadd231ps	%zmm25, %zmm24, %zmm2
	vbroadcastss	16(%r8), %zmm25
	vfmadd231ps	%zmm22, %zmm24, %zmm0
	vfmadd231ps	%zmm27, %zmm24, %zmm4
	vfmadd231ps	%zmm23, %zmm22, %zmm3
	vfmadd231ps	%zmm23, %zmm27, %zmm12
	vfmadd231ps	%zmm23, %zmm25, %zmm14
	vfmadd231ps	%zmm25, %zmm24, %zmm5
	vbroadcastss	24(%r8), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm15
	vfmadd231ps	%zmm26, %zmm24, %zmm6
	vbroadcastss	28(%r8), %zmm26
	vfmadd231ps	%zmm23, %zmm25, %zmm16
	vfmadd231ps	%zmm25, %zmm24, %zmm7
	vbroadcastss	32(%r8), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm17
	vfmadd231ps	%zmm26, %zmm24, %zmm8
	vbroadcastss	36(%r8), %zmm26
	vfmadd231ps	%zmm25, %zmm24, %zmm10
	vfmadd231ps	%zmm24, %zmm26, %zmm13
	vbroadcastss	4(%r8,%r9), %zmm24
	vfmadd231ps	%zmm23, %zmm25, %zmm18
	vfmadd231ps	%zmm23, %zmm26, %zmm19
	vbroadcastss	8(%r8,%r9), %zmm23
	vbroadcastss	(%r8,%r9), %zmm25
	vbroadcastss	28(%r8,%r9), %zmm26
	vfmadd231ps	%zmm21, %zmm24, %zmm9
	vfmadd231ps	%zmm24, %zmm20, %zmm1
	vbroadcastss	12(%r8,%r9), %zmm24
	vfmadd231ps	%zmm21, %zmm23, %zmm11
	vfmadd231ps	%zmm23, %zmm20, %zmm2
	vbroadcastss	16(%r8,%r9), %zmm23
	vfmadd231ps	%zmm21, %zmm25, %zmm3
	vfmadd231ps	%zmm25, %zmm20, %zmm0
	vbroadcastss	36(%r8,%r9), %zmm25
	vfmadd231ps	%zmm21, %zmm26, %zmm17
	vfmadd231ps	%zmm26, %zmm20, %zmm8
	vfmadd231ps	%zmm21, %zmm24, %zmm12
	vfmadd231ps	%zmm24, %zmm20, %zmm4
	vbroadcastss	20(%r8,%r9), %zmm24
	vfmadd231ps	%zmm21, %zmm23, %zmm14
	vfmadd231ps	%zmm23, %zmm20, %zmm5
	vbroadcastss	24(%r8,%r9), %zmm23
	vfmadd231ps	%zmm21, %zmm25, %zmm19
	vfmadd231ps	%zmm20, %zmm25, %zmm13
	vfmadd231ps	%zmm21, %zmm24, %zmm15
	vfmadd231ps	%zmm24, %zmm20, %zmm6
	vbroadcastss	32(%r8,%r9), %zmm24
	vfmadd231ps	%zmm21, %zmm23, %zmm16
	vfmadd231ps	%zmm23, %zmm20, %zmm7
	addq	%r9, %r8
	addq	%r9, %r8
	addq	$-2, %rcx
	vfmadd231ps	%zmm21, %zmm24, %zmm18
	vfmadd231ps	%zmm24, %zmm20, %zmm10
	jne	.LBB0_43
	testb	$1, %dl
	je	.LBB0_46
.LBB0_45:
	vbroadcastss	4(%r8), %zmm23
	vmovups	(%r11), %zmm20
	vmovups	64(%r11), %zmm22
	vbroadcastss	8(%r8), %zmm24
	vbroadcastss	(%r8), %zmm21
	vbroadcastss	16(%r8), %zmm25
	vfmadd231ps	%zmm20, %zmm23, %zmm9
	vfmadd231ps	%zmm23, %zmm22, %zmm1
	vbroadcastss	12(%r8), %zmm23
	vfmadd231ps	%zmm20, %zmm24, %zmm11
	vfmadd231ps	%zmm24, %zmm22, %zmm2
	vbroadcastss	24(%r8), %zmm24
	vfmadd231ps	%zmm20, %zmm21, %zmm3
	vfmadd231ps	%zmm21, %zmm22, %zmm0
	vfmadd231ps	%zmm20, %zmm25, %zmm14
	vfmadd231ps	%zmm25, %zmm22, %zmm5
	vfmadd231ps	%zmm20, %zmm23, %zmm12
	vfmadd231ps	%zmm23, %zmm22, %zmm4
	vbroadcastss	20(%r8), %zmm23
	vfmadd231ps	%zmm20, %zmm24, %zmm16
	vfmadd231ps	%zmm24, %zmm22, %zmm7
	vbroadcastss	32(%r8), %zmm24
	vfmadd231ps	%zmm20, %zmm23, %zmm15
	vfmadd231ps	%zmm23, %zmm22, %zmm6
	vbroadcastss	28(%r8), %zmm23
	vfmadd231ps	%zmm20, %zmm24, %zmm18
	vfmadd231ps	%zmm24, %zmm22, %zmm10
	vfmadd231ps	%zmm20, %zmm23, %zmm17
	vfmadd231ps	%zmm23, %zmm22, %zmm8
	vbroadcastss	36(%r8), %zmm23
	vfmadd231ps	%zmm20, %zmm23, %zmm19
	vfmadd231ps	%zmm22, %zmm23, %zmm13
.LBB0_46:
	movabsq	$.LCPI0_0, %rcx
	leaq	(%rax,%r10,8), %r8
	vpbroadcastd	%esi, %zmm20
	leaq	(%r10,%r10,4), %rdx
	leaq	(%r10,%r10,8), %r9
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm21
	leaq	(%r10,%r10,2), %rcx
	subq	%r10, %r8
	vpcmpgtd	%zmm21, %zmm20, %k1
	vmovups	%zmm3, (%rax) {%k1}
	vmovups	%zmm9, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm9
	vmovups	%zmm11, (%rax,%r10,2) {%k1}
	vmovups	%zmm12, (%rax,%rcx) {%k1}
	vmovups	%zmm14, (%rax,%r10,4) {%k1}
	vmovups	%zmm15, (%rax,%rdx) {%k1}
	vmovups	%zmm16, (%rax,%rcx,2) {%k1}
	vmovups	%zmm17, (%r8) {%k1}
	vmovups	%zmm18, (%rax,%r10,8) {%k1}
	vmovups	%zmm19, (%rax,%r9) {%k1}
	vpcmpgtd	%zmm21, %zmm9, %k1
	vmovups	%zmm0, 64(%rax) {%k1}
	vmovups	%zmm1, 64(%r10,%rax) {%k1}
	vmovups	%zmm2, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	vmovups	%zmm5, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm6, 64(%rax,%rdx) {%k1}
	vmovups	%zmm7, 64(%rax,%rcx,2) {%k1}
	vmovups	%zmm8, 64(%r8) {%k1}
	vmovups	%zmm10, 64(%rax,%r10,8) {%k1}
	vmovups	%zmm13, 64(%rax,%r9) {%k1}
	jmp	.LBB0_94
.LBB0_77:
	movabsq	$9223372036854775806, %rcx
	leaq	(%r9,%r9), %r14
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm3, %xmm3, %xmm3
	addq	$-2, %rcx
	andq	%rcx, %rbx
	leaq	(%r9,%r9,2), %rcx
	.p2align	4
.LBB0_78:
	vbroadcastss	(%r8), %zmm6
	vbroadcastss	4(%r8), %zmm12
	vbroadcastss	8(%r8), %zmm10
	vmovups	64(%r11), %zmm8
	vmovups	(%r11), %zmm7
	vmovups	128(%r11), %zmm9
	vbroadcastss	(%r8,%r9), %zmm11
	vfmadd231ps	%zmm6, %zmm8, %zmm1
	vfmadd231ps	%zmm12, %zmm8, %zmm2
	vfmadd231ps	%zmm8, %zmm10, %zmm3
	vbroadcastss	4(%r8,%r9), %zmm8
	vfmadd231ps	%zmm7, %zmm6, %zmm0
	vfmadd231ps	%zmm7, %zmm12, %zmm4
	vfmadd231ps	%zmm7, %zmm10, %zmm5
	vmovups	192(%r11), %zmm7
	vbroadcastss	(%r8,%r9,2), %zmm10
	vmovups	256(%r11), %zmm6
	vbroadcastss	8(%r8,%r9,2), %zmm12
	vfmadd231ps	%zmm9, %zmm11, %zmm0
	vfmadd231ps	%zmm11, %zmm7, %zmm1
	vbroadcastss	(%rcx,%r8), %zmm11
	vfmadd231ps	%zmm9, %zmm8, %zmm4
	vfmadd231ps	%zmm8, %zmm7, %zmm2
	vbroadcastss	8(%r8,%r9), %zmm8
	vfmadd231ps	%zmm6, %zmm10, %zmm0
	vfmadd231ps	%zmm9, %zmm8, %zmm5
	vbroadcastss	4(%r8,%r9,2), %zmm9
	vfmadd231ps	%zmm7, %zmm8, %zmm3
	vmovups	320(%r11), %zmm8
	vmovups	384(%r11), %zmm7
	vfmadd231ps	%zmm6, %zmm12, %zmm5
	vfmadd231ps	%zmm10, %zmm8, %zmm1
	vbroadcastss	8(%rcx,%r8), %zmm10
	vfmadd231ps	%zmm8, %zmm12, %zmm3
	vfmadd231ps	%zmm7, %zmm11, %zmm0
	vfmadd231ps	%zmm9, %zmm8, %zmm2
	vfmadd231ps	%zmm6, %zmm9, %zmm4
	vbroadcastss	4(%rcx,%r8), %zmm9
	vmovups	448(%r11), %zmm8
	addq	%r9, %r8
	addq	$512, %r11
	addq	%r14, %r8
	addq	%r9, %r8
	addq	$-4, %rbx
	vfmadd231ps	%zmm11, %zmm8, %zmm1
	vfmadd231ps	%zmm7, %zmm10, %zmm5
	vfmadd231ps	%zmm8, %zmm10, %zmm3
	vfmadd231ps	%zmm7, %zmm9, %zmm4
	vfmadd231ps	%zmm9, %zmm8, %zmm2
	jne	.LBB0_78
	testq	%rdx, %rdx
	je	.LBB0_81
	.p2align	4
.LBB0_80:
	vbroadcastss	(%r8), %zmm8
	vbroadcastss	4(%r8), %zmm9
	vbroadcastss	8(%r8), %zmm10
	vmovups	(%r11), %zmm6
	vmovups	64(%r11), %zmm7
	addq	%r9, %r8
	subq	$-128, %r11
	decq	%rdx
	vfmadd231ps	%zmm6, %zmm8, %zmm0
	vfmadd231ps	%zmm8, %zmm7, %zmm1
	vfmadd231ps	%zmm6, %zmm9, %zmm4
	vfmadd231ps	%zmm9, %zmm7, %zmm2
	vfmadd231ps	%zmm6, %zmm10, %zmm5
	vfmadd231ps	%zmm7, %zmm10, %zmm3
	jne	.LBB0_80
.LBB0_81:
	movabsq	$.LCPI0_0, %rcx
	vpbroadcastd	%esi, %zmm6
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm7
	vpcmpgtd	%zmm7, %zmm6, %k1
	vmovups	%zmm0, (%rax) {%k1}
	vmovups	%zmm4, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm4
	vmovups	%zmm5, (%rax,%r10,2) {%k1}
	vpcmpgtd	%zmm7, %zmm4, %k1
	vmovups	%zmm1, 64(%rax) {%k1}
	vmovups	%zmm2, 64(%r10,%rax) {%k1}
	vmovups	%zmm3, 64(%rax,%r10,2) {%k1}
	jmp	.LBB0_94
.LBB0_72:
	movabsq	$9223372036854775806, %rcx
	leaq	(%r9,%r9), %r14
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm4, %xmm4, %xmm4
	addq	$-2, %rcx
	andq	%rcx, %rbx
	leaq	(%r9,%r9,2), %rcx
	.p2align	4
.LBB0_73:
	vbroadcastss	(%r8), %zmm8
	vbroadcastss	4(%r8), %zmm12
	vbroadcastss	8(%r8), %zmm14
	vbroadcastss	12(%r8), %zmm13
	vmovups	(%r11), %zmm9
	vmovups	64(%r11), %zmm10
	vmovups	128(%r11), %zmm11
	vfmadd231ps	%zmm9, %zmm8, %zmm0
	vfmadd231ps	%zmm8, %zmm10, %zmm1
	vfmadd231ps	%zmm9, %zmm12, %zmm5
	vfmadd231ps	%zmm12, %zmm10, %zmm2
	vfmadd231ps	%zmm9, %zmm14, %zmm6
	vfmadd231ps	%zmm9, %zmm13, %zmm7
	vfmadd231ps	%zmm10, %zmm13, %zmm4
	vfmadd231ps	%zmm14, %zmm10, %zmm3
	vbroadcastss	(%r8,%r9), %zmm10
	vbroadcastss	4(%r8,%r9), %zmm9
	vmovups	192(%r11), %zmm12
	vmovups	256(%r11), %zmm13
	vmovups	384(%r11), %zmm8
	vfmadd231ps	%zmm11, %zmm10, %zmm0
	vfmadd231ps	%zmm10, %zmm12, %zmm1
	vbroadcastss	8(%r8,%r9), %zmm10
	vfmadd231ps	%zmm11, %zmm9, %zmm5
	vfmadd231ps	%zmm9, %zmm12, %zmm2
	vbroadcastss	12(%r8,%r9), %zmm9
	vfmadd231ps	%zmm11, %zmm10, %zmm6
	vfmadd231ps	%zmm11, %zmm9, %zmm7
	vbroadcastss	4(%r8,%r9,2), %zmm11
	vfmadd231ps	%zmm12, %zmm9, %zmm4
	vmovups	320(%r11), %zmm9
	vfmadd231ps	%zmm10, %zmm12, %zmm3
	vbroadcastss	(%r8,%r9,2), %zmm10
	vbroadcastss	8(%r8,%r9,2), %zmm12
	vfmadd231ps	%zmm13, %zmm11, %zmm5
	vfmadd231ps	%zmm11, %zmm9, %zmm2
	vbroadcastss	12(%r8,%r9,2), %zmm11
	vfmadd231ps	%zmm13, %zmm10, %zmm0
	vfmadd231ps	%zmm10, %zmm9, %zmm1
	vmovups	448(%r11), %zmm10
	vfmadd231ps	%zmm13, %zmm12, %zmm6
	vfmadd231ps	%zmm12, %zmm9, %zmm3
	vbroadcastss	12(%rcx,%r8), %zmm12
	addq	$512, %r11
	vfmadd231ps	%zmm13, %zmm11, %zmm7
	vfmadd231ps	%zmm9, %zmm11, %zmm4
	vbroadcastss	(%rcx,%r8), %zmm11
	vbroadcastss	4(%rcx,%r8), %zmm13
	vfmadd231ps	%zmm8, %zmm12, %zmm7
	vfmadd231ps	%zmm10, %zmm12, %zmm4
	vfmadd231ps	%zmm8, %zmm11, %zmm0
	vfmadd231ps	%zmm11, %zmm10, %zmm1
	vbroadcastss	8(%rcx,%r8), %zmm11
	vfmadd231ps	%zmm8, %zmm13, %zmm5
	vfmadd231ps	%zmm13, %zmm10, %zmm2
	addq	%r9, %r8
	addq	%r14, %r8
	addq	%r9, %r8
	addq	$-4, %rbx
	vfmadd231ps	%zmm8, %zmm11, %zmm6
	vfmadd231ps	%zmm11, %zmm10, %zmm3
	jne	.LBB0_73
	testq	%rdx, %rdx
	je	.LBB0_76
	.p2align	4
.LBB0_75:
	vbroadcastss	(%r8), %zmm10
	vbroadcastss	4(%r8), %zmm13
	vbroadcastss	8(%r8), %zmm11
	vbroadcastss	12(%r8), %zmm12
	vmovups	(%r11), %zmm8
	vmovups	64(%r11), %zmm9
	addq	%r9, %r8
	subq	$-128, %r11
	decq	%rdx
	vfmadd231ps	%zmm8, %zmm10, %zmm0
	vfmadd231ps	%zmm10, %zmm9, %zmm1
	vfmadd231ps	%zmm8, %zmm13, %zmm5
	vfmadd231ps	%zmm13, %zmm9, %zmm2
	vfmadd231ps	%zmm8, %zmm11, %zmm6
	vfmadd231ps	%zmm11, %zmm9, %zmm3
	vfmadd231ps	%zmm8, %zmm12, %zmm7
	vfmadd231ps	%zmm9, %zmm12, %zmm4
	jne	.LBB0_75
.LBB0_76:
	movabsq	$.LCPI0_0, %rcx
	vpbroadcastd	%esi, %zmm8
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm9
	leaq	(%r10,%r10,2), %rcx
	vpcmpgtd	%zmm9, %zmm8, %k1
	vmovups	%zmm0, (%rax) {%k1}
	vmovups	%zmm5, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm5
	vmovups	%zmm6, (%rax,%r10,2) {%k1}
	vmovups	%zmm7, (%rax,%rcx) {%k1}
	vpcmpgtd	%zmm9, %zmm5, %k1
	vmovups	%zmm1, 64(%rax) {%k1}
	vmovups	%zmm2, 64(%r10,%rax) {%k1}
	vmovups	%zmm3, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	jmp	.LBB0_94
.LBB0_52:
	movabsq	$9223372036854775806, %rcx
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm9, %xmm9, %xmm9
	andq	%rdx, %rcx
	.p2align	4
.LBB0_53:
	vbroadcastss	4(%r8), %zmm21
	vmovups	(%r11), %zmm19
	vmovups	64(%r11), %zmm20
	vbroadcastss	12(%r8), %zmm22
	vbroadcastss	(%r8), %zmm18
	vbroadcastss	20(%r8), %zmm23
	vmovups	128(%r11), %zmm17
	vmovups	192(%r11), %zmm16
	addq	$256, %r11
	vfmadd231ps	%zmm19, %zmm21, %zmm8
	vfmadd231ps	%zmm21, %zmm20, %zmm1
	vbroadcastss	8(%r8), %zmm21
	vfmadd231ps	%zmm19, %zmm22, %zmm11
	vfmadd231ps	%zmm22, %zmm20, %zmm4
	vbroadcastss	28(%r8), %zmm22
	vfmadd231ps	%zmm19, %zmm18, %zmm2
	vfmadd231ps	%zmm18, %zmm20, %zmm0
	vfmadd231ps	%zmm19, %zmm23, %zmm13
	vfmadd231ps	%zmm23, %zmm20, %zmm6
	vfmadd231ps	%zmm19, %zmm21, %zmm10
	vfmadd231ps	%zmm21, %zmm20, %zmm3
	vbroadcastss	16(%r8), %zmm21
	vfmadd231ps	%zmm19, %zmm22, %zmm15
	vfmadd231ps	%zmm20, %zmm22, %zmm9
	vbroadcastss	20(%r8,%r9), %zmm22
	vfmadd231ps	%zmm19, %zmm21, %zmm12
	vfmadd231ps	%zmm21, %zmm20, %zmm5
	vbroadcastss	24(%r8), %zmm21
	vfmadd231ps	%zmm17, %zmm22, %zmm13
	vfmadd231ps	%zmm22, %zmm16, %zmm6
	vfmadd231ps	%zmm19, %zmm21, %zmm14
	vfmadd231ps	%zmm21, %zmm20, %zmm7
	vbroadcastss	(%r8,%r9), %zmm19
	vbroadcastss	4(%r8,%r9), %zmm20
	vbroadcastss	28(%r8,%r9), %zmm21
	vfmadd231ps	%zmm17, %zmm19, %zmm2
	vfmadd231ps	%zmm19, %zmm16, %zmm0
	vbroadcastss	8(%r8,%r9), %zmm19
	vfmadd231ps	%zmm17, %zmm20, %zmm8
	vfmadd231ps	%zmm20, %zmm16, %zmm1
	vbroadcastss	12(%r8,%r9), %zmm20
	vfmadd231ps	%zmm17, %zmm21, %zmm15
	vfmadd231ps	%zmm16, %zmm21, %zmm9
	vfmadd231ps	%zmm17, %zmm19, %zmm10
	vfmadd231ps	%zmm19, %zmm16, %zmm3
	vbroadcastss	16(%r8,%r9), %zmm19
	vfmadd231ps	%zmm17, %zmm20, %zmm11
	vfmadd231ps	%zmm20, %zmm16, %zmm4
	vbroadcastss	24(%r8,%r9), %zmm20
	addq	%r9, %r8
	addq	%r9, %r8
	addq	$-2, %rcx
	vfmadd231ps	%zmm17, %zmm19, %zmm12
	vfmadd231ps	%zmm19, %zmm16, %zmm5
	vfmadd231ps	%zmm17, %zmm20, %zmm14
	vfmadd231ps	%zmm20, %zmm16, %zmm7
	jne	.LBB0_53
	testb	$1, %dl
	je	.LBB0_56
.LBB0_55:
	vbroadcastss	4(%r8), %zmm19
	vmovups	(%r11), %zmm16
	vmovups	64(%r11), %zmm17
	vbroadcastss	16(%r8), %zmm20
	vbroadcastss	(%r8), %zmm18
	vbroadcastss	8(%r8), %zmm21
	vfmadd231ps	%zmm16, %zmm19, %zmm8
	vfmadd231ps	%zmm19, %zmm17, %zmm1
	vbroadcastss	12(%r8), %zmm19
	vfmadd231ps	%zmm16, %zmm20, %zmm12
	vfmadd231ps	%zmm20, %zmm17, %zmm5
	vbroadcastss	24(%r8), %zmm20
	vfmadd231ps	%zmm16, %zmm18, %zmm2
	vfmadd231ps	%zmm18, %zmm17, %zmm0
	vfmadd231ps	%zmm16, %zmm21, %zmm10
	vfmadd231ps	%zmm21, %zmm17, %zmm3
	vfmadd231ps	%zmm16, %zmm19, %zmm11
	vfmadd231ps	%zmm19, %zmm17, %zmm4
	vbroadcastss	20(%r8), %zmm19
	vfmadd231ps	%zmm16, %zmm20, %zmm14
	vfmadd231ps	%zmm20, %zmm17, %zmm7
	vfmadd231ps	%zmm16, %zmm19, %zmm13
	vfmadd231ps	%zmm19, %zmm17, %zmm6
	vbroadcastss	28(%r8), %zmm19
	vfmadd231ps	%zmm16, %zmm19, %zmm15
	vfmadd231ps	%zmm17, %zmm19, %zmm9
.LBB0_56:
	movabsq	$.LCPI0_0, %rcx
	leaq	(%rax,%r10,8), %r8
	vpbroadcastd	%esi, %zmm16
	leaq	(%r10,%r10,4), %rdx
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm17
	leaq	(%r10,%r10,2), %rcx
	subq	%r10, %r8
	vpcmpgtd	%zmm17, %zmm16, %k1
	vmovups	%zmm2, (%rax) {%k1}
	vmovups	%zmm8, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm8
	vmovups	%zmm10, (%rax,%r10,2) {%k1}
	vmovups	%zmm11, (%rax,%rcx) {%k1}
	vmovups	%zmm12, (%rax,%r10,4) {%k1}
	vmovups	%zmm13, (%rax,%rdx) {%k1}
	vmovups	%zmm14, (%rax,%rcx,2) {%k1}
	vmovups	%zmm15, (%r8) {%k1}
	vpcmpgtd	%zmm17, %zmm8, %k1
	vmovups	%zmm0, 64(%rax) {%k1}
	vmovups	%zmm1, 64(%r10,%rax) {%k1}
	vmovups	%zmm3, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	vmovups	%zmm5, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm6, 64(%rax,%rdx) {%k1}
	vmovups	%zmm7, 64(%rax,%rcx,2) {%k1}
	vmovups	%zmm9, 64(%r8) {%k1}
	jmp	.LBB0_94
.LBB0_88:
	movabsq	$9223372036854775806, %rbx
	leaq	(,%r9,8), %rcx
	leaq	(%r9,%r9), %r14
	vxorps	%xmm1, %xmm1, %xmm1
	addq	$-6, %rbx
	andq	%rbx, %r10
	leaq	(%r9,%r9,2), %rbx
	.p2align	4
.LBB0_89:
	vbroadcastss	(%r8), %zmm2
	vbroadcastss	(%r8,%r9,2), %zmm3
	movq	%r8, %r15
	vfmadd231ps	(%r11), %zmm2, %zmm0
	vfmadd231ps	64(%r11), %zmm2, %zmm1
	vbroadcastss	(%r9,%r8), %zmm2
	vfmadd231ps	128(%r11), %zmm2, %zmm0
	vfmadd231ps	192(%r11), %zmm2, %zmm1
	vbroadcastss	(%rbx,%r8), %zmm2
	addq	%rbx, %r8
	vfmadd231ps	256(%r11), %zmm3, %zmm0
	vfmadd231ps	320(%r11), %zmm3, %zmm1
	vbroadcastss	(%r9,%r8), %zmm3
	leaq	(%r9,%r8), %r8
	vfmadd231ps	384(%r11), %zmm2, %zmm0
	vfmadd231ps	448(%r11), %zmm2, %zmm1
	vbroadcastss	(%r9,%r8), %zmm2
	addq	%r9, %r8
	vfmadd231ps	512(%r11), %zmm3, %zmm0
	vfmadd231ps	576(%r11), %zmm3, %zmm1
	vbroadcastss	(%r9,%r8), %zmm3
	addq	%r9, %r8
	vfmadd231ps	640(%r11), %zmm2, %zmm0
	vfmadd231ps	704(%r11), %zmm2, %zmm1
	vbroadcastss	(%r9,%r8), %zmm2
	addq	%r14, %r8
	vfmadd231ps	768(%r11), %zmm3, %zmm0
	vfmadd231ps	832(%r11), %zmm3, %zmm1
	vfmadd231ps	896(%r11), %zmm2, %zmm0
	vfmadd231ps	960(%r11), %zmm2, %zmm1
	addq	$1024, %r11
	addq	$-8, %r10
	jne	.LBB0_89
	testq	%rdx, %rdx
	je	.LBB0_93
	addq	%rcx, %r15
	movq	%r15, %r8
	.p2align	4
.LBB0_92:
	vbroadcastss	(%r8), %zmm2
	addq	%r9, %r8
	vfmadd231ps	(%r11), %zmm2, %zmm0
	vfmadd231ps	64(%r11), %zmm2, %zmm1
	subq	$-128, %r11
	decq	%rdx
	jne	.LBB0_92
.LBB0_93:
	movabsq	$.LCPI0_0, %rcx
	vpbroadcastd	%esi, %zmm2
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm3
	vpcmpgtd	%zmm3, %zmm2, %k1
	vpbroadcastd	%esi, %zmm2
	vmovups	%zmm0, (%rax) {%k1}
	vpcmpgtd	%zmm3, %zmm2, %k1
	vmovups	%zmm1, 64(%rax) {%k1}
	jmp	.LBB0_94
.LBB0_82:
	movabsq	$9223372036854775806, %r15
	leaq	(,%r9,8), %rcx
	leaq	(%r9,%r9,2), %r14
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm2, %xmm2, %xmm2
	addq	$-6, %r15
	andq	%r15, %rbx
	leaq	(%r9,%r9), %r15
	.p2align	4
.LBB0_83:
	vbroadcastss	(%r8), %zmm4
	vbroadcastss	4(%r8), %zmm9
	vmovups	(%r11), %zmm5
	vmovups	64(%r11), %zmm6
	vmovups	128(%r11), %zmm7
	vmovups	192(%r11), %zmm8
	movq	%r8, %r12
	vfmadd231ps	%zmm5, %zmm4, %zmm0
	vfmadd231ps	%zmm4, %zmm6, %zmm1
	vfmadd231ps	%zmm5, %zmm9, %zmm3
	vfmadd231ps	%zmm6, %zmm9, %zmm2
	vbroadcastss	(%r9,%r8), %zmm6
	vbroadcastss	4(%r9,%r8), %zmm5
	vmovups	256(%r11), %zmm9
	vmovups	384(%r11), %zmm4
	vfmadd231ps	%zmm7, %zmm6, %zmm0
	vfmadd231ps	%zmm7, %zmm5, %zmm3
	vbroadcastss	4(%r8,%r9,2), %zmm7
	vfmadd231ps	%zmm6, %zmm8, %zmm1
	vfmadd231ps	%zmm8, %zmm5, %zmm2
	vbroadcastss	(%r8,%r9,2), %zmm6
	vmovups	320(%r11), %zmm5
	vbroadcastss	(%r14,%r12), %zmm8
	leaq	(%r14,%r8), %r8
	leaq	(%r9,%r8), %r13
	leaq	(%r9,%r13), %rbp
	vfmadd231ps	%zmm9, %zmm7, %zmm3
	vfmadd231ps	%zmm5, %zmm7, %zmm2
	vbroadcastss	4(%r14,%r12), %zmm7
	vfmadd231ps	%zmm6, %zmm5, %zmm1
	vmovups	448(%r11), %zmm5
	vfmadd231ps	%zmm9, %zmm6, %zmm0
	vmovups	832(%r11), %zmm6
	vfmadd231ps	%zmm4, %zmm8, %zmm0
	vfmadd231ps	%zmm8, %zmm5, %zmm1
	vbroadcastss	(%r9,%r8), %zmm8
	vfmadd231ps	%zmm4, %zmm7, %zmm3
	vfmadd231ps	%zmm5, %zmm7, %zmm2
	vbroadcastss	4(%r9,%r8), %zmm7
	vmovups	512(%r11), %zmm4
	vmovups	576(%r11), %zmm5
	leaq	(%r9,%rbp), %r8
	vfmadd231ps	%zmm4, %zmm8, %zmm0
	vfmadd231ps	%zmm8, %zmm5, %zmm1
	vbroadcastss	(%r9,%r13), %zmm8
	vfmadd231ps	%zmm4, %zmm7, %zmm3
	vfmadd231ps	%zmm5, %zmm7, %zmm2
	vbroadcastss	4(%r9,%r13), %zmm7
	vmovups	640(%r11), %zmm4
	vmovups	704(%r11), %zmm5
	vfmadd231ps	%zmm4, %zmm8, %zmm0
	vfmadd231ps	%zmm8, %zmm5, %zmm1
	vbroadcastss	(%r9,%rbp), %zmm8
	vfmadd231ps	%zmm4, %zmm7, %zmm3
	vfmadd231ps	%zmm5, %zmm7, %zmm2
	vbroadcastss	4(%r9,%rbp), %zmm7
	vmovups	768(%r11), %zmm4
	vmovups	896(%r11), %zmm5
	vfmadd231ps	%zmm4, %zmm8, %zmm0
	vfmadd231ps	%zmm8, %zmm6, %zmm1
	vbroadcastss	(%r9,%r8), %zmm8
	vfmadd231ps	%zmm6, %zmm7, %zmm2
	vfmadd231ps	%zmm4, %zmm7, %zmm3
	vbroadcastss	4(%r9,%r8), %zmm7
	vmovups	960(%r11), %zmm6
	addq	$1024, %r11
	addq	%r15, %r8
	addq	$-8, %rbx
	vfmadd231ps	%zmm5, %zmm8, %zmm0
	vfmadd231ps	%zmm8, %zmm6, %zmm1
	vfmadd231ps	%zmm5, %zmm7, %zmm3
	vfmadd231ps	%zmm6, %zmm7, %zmm2
	jne	.LBB0_83
	testq	%rdx, %rdx
	je	.LBB0_87
	addq	%rcx, %r12
	movq	%r12, %r8
	.p2align	4
.LBB0_86:
	vbroadcastss	(%r8), %zmm4
	vbroadcastss	4(%r8), %zmm7
	vmovups	(%r11), %zmm5
	vmovups	64(%r11), %zmm6
	addq	%r9, %r8
	subq	$-128, %r11
	decq	%rdx
	vfmadd231ps	%zmm5, %zmm4, %zmm0
	vfmadd231ps	%zmm4, %zmm6, %zmm1
	vfmadd231ps	%zmm5, %zmm7, %zmm3
	vfmadd231ps	%zmm6, %zmm7, %zmm2
	jne	.LBB0_86
.LBB0_87:
	movabsq	$.LCPI0_0, %rcx
	vpbroadcastd	%esi, %zmm4
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm5
	vpcmpgtd	%zmm5, %zmm4, %k1
	vmovups	%zmm0, (%rax) {%k1}
	vmovups	%zmm3, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm3
	vpcmpgtd	%zmm5, %zmm3, %k1
	vmovups	%zmm1, 64(%rax) {%k1}
	vmovups	%zmm2, 64(%r10,%rax) {%k1}
	jmp	.LBB0_94
.LBB0_62:
	movabsq	$9223372036854775806, %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm7, %xmm7, %xmm7
	andq	%rdx, %rcx
	.p2align	4
.LBB0_63:
	vbroadcastss	4(%r8), %zmm18
	vbroadcastss	8(%r8), %zmm17
	vmovups	(%r11), %zmm15
	vmovups	64(%r11), %zmm16
	vbroadcastss	(%r8), %zmm14
	vbroadcastss	12(%r8), %zmm19
	vmovups	128(%r11), %zmm13
	vmovups	192(%r11), %zmm12
	addq	$256, %r11
	vfmadd231ps	%zmm15, %zmm18, %zmm6
	vfmadd231ps	%zmm18, %zmm16, %zmm2
	vbroadcastss	16(%r8), %zmm18
	vfmadd231ps	%zmm15, %zmm17, %zmm8
	vfmadd231ps	%zmm17, %zmm16, %zmm3
	vbroadcastss	20(%r8), %zmm17
	vfmadd231ps	%zmm15, %zmm14, %zmm0
	vfmadd231ps	%zmm14, %zmm16, %zmm1
	vfmadd231ps	%zmm15, %zmm19, %zmm9
	vfmadd231ps	%zmm19, %zmm16, %zmm4
	vfmadd231ps	%zmm15, %zmm18, %zmm10
	vfmadd231ps	%zmm18, %zmm16, %zmm5
	vfmadd231ps	%zmm15, %zmm17, %zmm11
	vfmadd231ps	%zmm16, %zmm17, %zmm7
	vbroadcastss	(%r8,%r9), %zmm15
	vbroadcastss	4(%r8,%r9), %zmm16
	vbroadcastss	12(%r8,%r9), %zmm18
	vbroadcastss	20(%r8,%r9), %zmm17
	vfmadd231ps	%zmm13, %zmm15, %zmm0
	vfmadd231ps	%zmm15, %zmm12, %zmm1
	vbroadcastss	8(%r8,%r9), %zmm15
	vfmadd231ps	%zmm13, %zmm16, %zmm6
	vfmadd231ps	%zmm16, %zmm12, %zmm2
	vbroadcastss	16(%r8,%r9), %zmm16
	vfmadd231ps	%zmm13, %zmm18, %zmm9
	vfmadd231ps	%zmm18, %zmm12, %zmm4
	vfmadd231ps	%zmm13, %zmm17, %zmm11
	vfmadd231ps	%zmm12, %zmm17, %zmm7
	addq	%r9, %r8
	addq	%r9, %r8
	addq	$-2, %rcx
	vfmadd231ps	%zmm13, %zmm15, %zmm8
	vfmadd231ps	%zmm15, %zmm12, %zmm3
	vfmadd231ps	%zmm13, %zmm16, %zmm10
	vfmadd231ps	%zmm16, %zmm12, %zmm5
	jne	.LBB0_63
	testb	$1, %dl
	je	.LBB0_66
.LBB0_65:
	vbroadcastss	4(%r8), %zmm15
	vmovups	(%r11), %zmm12
	vmovups	64(%r11), %zmm13
	vbroadcastss	8(%r8), %zmm16
	vbroadcastss	(%r8), %zmm14
	vfmadd231ps	%zmm12, %zmm15, %zmm6
	vfmadd231ps	%zmm15, %zmm13, %zmm2
	vbroadcastss	12(%r8), %zmm15
	vfmadd231ps	%zmm12, %zmm16, %zmm8
	vfmadd231ps	%zmm16, %zmm13, %zmm3
	vbroadcastss	16(%r8), %zmm16
	vfmadd231ps	%zmm12, %zmm14, %zmm0
	vfmadd231ps	%zmm14, %zmm13, %zmm1
	vfmadd231ps	%zmm12, %zmm15, %zmm9
	vfmadd231ps	%zmm15, %zmm13, %zmm4
	vbroadcastss	20(%r8), %zmm15
	vfmadd231ps	%zmm12, %zmm16, %zmm10
	vfmadd231ps	%zmm16, %zmm13, %zmm5
	vfmadd231ps	%zmm12, %zmm15, %zmm11
	vfmadd231ps	%zmm13, %zmm15, %zmm7
.LBB0_66:
	movabsq	$.LCPI0_0, %rcx
	vpbroadcastd	%esi, %zmm12
	leaq	(%r10,%r10,4), %rdx
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm13
	leaq	(%r10,%r10,2), %rcx
	vpcmpgtd	%zmm13, %zmm12, %k1
	vmovups	%zmm0, (%rax) {%k1}
	vmovups	%zmm6, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm6
	vmovups	%zmm8, (%rax,%r10,2) {%k1}
	vmovups	%zmm9, (%rax,%rcx) {%k1}
	vmovups	%zmm10, (%rax,%r10,4) {%k1}
	vmovups	%zmm11, (%rax,%rdx) {%k1}
	vpcmpgtd	%zmm13, %zmm6, %k1
	vmovups	%zmm1, 64(%rax) {%k1}
	vmovups	%zmm2, 64(%r10,%rax) {%k1}
	vmovups	%zmm3, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	vmovups	%zmm5, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm7, 64(%rax,%rdx) {%k1}
	jmp	.LBB0_94
.LBB0_57:
	movabsq	$9223372036854775806, %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm9, %xmm9, %xmm9
	andq	%rdx, %rcx
	.p2align	4
.LBB0_58:
	vbroadcastss	8(%r8), %zmm19
	vmovups	(%r11), %zmm17
	vmovups	64(%r11), %zmm18
	vbroadcastss	4(%r8), %zmm20
	vbroadcastss	(%r8), %zmm16
	vbroadcastss	12(%r8), %zmm21
	vmovups	128(%r11), %zmm15
	vmovups	192(%r11), %zmm14
	addq	$256, %r11
	vfmadd231ps	%zmm17, %zmm19, %zmm8
	vfmadd231ps	%zmm19, %zmm18, %zmm3
	vbroadcastss	16(%r8), %zmm19
	vfmadd231ps	%zmm17, %zmm20, %zmm6
	vfmadd231ps	%zmm20, %zmm18, %zmm2
	vbroadcastss	20(%r8), %zmm20
	vfmadd231ps	%zmm16, %zmm18, %zmm1
	vfmadd231ps	%zmm21, %zmm18, %zmm4
	vfmadd231ps	%zmm17, %zmm16, %zmm0
	vfmadd231ps	%zmm17, %zmm21, %zmm10
	vfmadd231ps	%zmm17, %zmm19, %zmm11
	vfmadd231ps	%zmm19, %zmm18, %zmm5
	vbroadcastss	24(%r8), %zmm19
	vfmadd231ps	%zmm20, %zmm18, %zmm7
	vfmadd231ps	%zmm17, %zmm20, %zmm12
	vbroadcastss	16(%r8,%r9), %zmm20
	vfmadd231ps	%zmm18, %zmm19, %zmm9
	vbroadcastss	(%r8,%r9), %zmm18
	vfmadd231ps	%zmm17, %zmm19, %zmm13
	vbroadcastss	4(%r8,%r9), %zmm17
	vbroadcastss	24(%r8,%r9), %zmm19
	vfmadd231ps	%zmm15, %zmm20, %zmm11
	vfmadd231ps	%zmm20, %zmm14, %zmm5
	vfmadd231ps	%zmm15, %zmm18, %zmm0
	vfmadd231ps	%zmm18, %zmm14, %zmm1
	vbroadcastss	8(%r8,%r9), %zmm18
	vfmadd231ps	%zmm15, %zmm17, %zmm6
	vfmadd231ps	%zmm17, %zmm14, %zmm2
	vbroadcastss	12(%r8,%r9), %zmm17
	vfmadd231ps	%zmm15, %zmm19, %zmm13
	vfmadd231ps	%zmm14, %zmm19, %zmm9
	vfmadd231ps	%zmm15, %zmm18, %zmm8
	vfmadd231ps	%zmm18, %zmm14, %zmm3
	vbroadcastss	20(%r8,%r9), %zmm18
	vfmadd231ps	%zmm15, %zmm17, %zmm10
	vfmadd231ps	%zmm17, %zmm14, %zmm4
	addq	%r9, %r8
	addq	%r9, %r8
	addq	$-2, %rcx
	vfmadd231ps	%zmm15, %zmm18, %zmm12
	vfmadd231ps	%zmm18, %zmm14, %zmm7
	jne	.LBB0_58
	testb	$1, %dl
	je	.LBB0_61
.LBB0_60:
	vbroadcastss	8(%r8), %zmm17
	vmovups	(%r11), %zmm14
	vmovups	64(%r11), %zmm15
	vbroadcastss	12(%r8), %zmm18
	vbroadcastss	(%r8), %zmm16
	vbroadcastss	4(%r8), %zmm19
	vfmadd231ps	%zmm14, %zmm17, %zmm8
	vfmadd231ps	%zmm17, %zmm15, %zmm3
	vbroadcastss	16(%r8), %zmm17
	vfmadd231ps	%zmm14, %zmm18, %zmm10
	vfmadd231ps	%zmm18, %zmm15, %zmm4
	vbroadcastss	20(%r8), %zmm18
	vfmadd231ps	%zmm14, %zmm16, %zmm0
	vfmadd231ps	%zmm16, %zmm15, %zmm1
	vfmadd231ps	%zmm14, %zmm19, %zmm6
	vfmadd231ps	%zmm19, %zmm15, %zmm2
	vfmadd231ps	%zmm14, %zmm17, %zmm11
	vfmadd231ps	%zmm17, %zmm15, %zmm5
	vbroadcastss	24(%r8), %zmm17
	vfmadd231ps	%zmm14, %zmm18, %zmm12
	vfmadd231ps	%zmm18, %zmm15, %zmm7
	vfmadd231ps	%zmm14, %zmm17, %zmm13
	vfmadd231ps	%zmm15, %zmm17, %zmm9
.LBB0_61:
	movabsq	$.LCPI0_0, %rcx
	vpbroadcastd	%esi, %zmm14
	leaq	(%r10,%r10,4), %rdx
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm15
	leaq	(%r10,%r10,2), %rcx
	vpcmpgtd	%zmm15, %zmm14, %k1
	vmovups	%zmm0, (%rax) {%k1}
	vmovups	%zmm6, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm6
	vmovups	%zmm8, (%rax,%r10,2) {%k1}
	vmovups	%zmm10, (%rax,%rcx) {%k1}
	vmovups	%zmm11, (%rax,%r10,4) {%k1}
	vmovups	%zmm12, (%rax,%rdx) {%k1}
	vmovups	%zmm13, (%rax,%rcx,2) {%k1}
	vpcmpgtd	%zmm15, %zmm6, %k1
	vmovups	%zmm1, 64(%rax) {%k1}
	vmovups	%zmm2, 64(%r10,%rax) {%k1}
	vmovups	%zmm3, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	vmovups	%zmm5, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm7, 64(%rax,%rdx) {%k1}
	vmovups	%zmm9, 64(%rax,%rcx,2) {%k1}
	jmp	.LBB0_94
.LBB0_37:
	movabsq	$9223372036854775806, %rcx
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm2, %xmm2, %xmm2
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm18, %xmm18, %xmm18
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm19, %xmm19, %xmm19
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm20, %xmm20, %xmm20
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm21, %xmm21, %xmm21
	vxorps	%xmm15, %xmm15, %xmm15
	andq	%rdx, %rcx
	.p2align	4
.LBB0_38:
	vbroadcastss	4(%r8), %zmm27
	vmovups	(%r11), %zmm25
	vmovups	64(%r11), %zmm26
	vbroadcastss	12(%r8), %zmm28
	vbroadcastss	(%r8), %zmm24
	vbroadcastss	28(%r8), %zmm29
	vmovups	128(%r11), %zmm23
	vmovups	192(%r11), %zmm22
	addq	$256, %r11
	vfmadd231ps	%zmm25, %zmm27, %zmm9
	vfmadd231ps	%zmm27, %zmm26, %zmm1
	vbroadcastss	8(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm12
	vfmadd231ps	%zmm28, %zmm26, %zmm4
	vbroadcastss	20(%r8), %zmm28
	vfmadd231ps	%zmm25, %zmm24, %zmm3
	vfmadd231ps	%zmm24, %zmm26, %zmm0
	vfmadd231ps	%zmm25, %zmm29, %zmm18
	vfmadd231ps	%zmm29, %zmm26, %zmm8
	vfmadd231ps	%zmm25, %zmm27, %zmm10
	vfmadd231ps	%zmm27, %zmm26, %zmm2
	vbroadcastss	16(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm16
	vfmadd231ps	%zmm28, %zmm26, %zmm6
	vbroadcastss	32(%r8), %zmm28
	vfmadd231ps	%zmm25, %zmm27, %zmm14
	vfmadd231ps	%zmm27, %zmm26, %zmm5
	vbroadcastss	24(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm19
	vfmadd231ps	%zmm28, %zmm26, %zmm11
	vbroadcastss	40(%r8), %zmm28
	vfmadd231ps	%zmm25, %zmm27, %zmm17
	vfmadd231ps	%zmm27, %zmm26, %zmm7
	vbroadcastss	36(%r8), %zmm27
	vfmadd231ps	%zmm25, %zmm28, %zmm21
	vfmadd231ps	%zmm26, %zmm28, %zmm15
	vbroadcastss	32(%r8,%r9), %zmm28
	vfmadd231ps	%zmm25, %zmm27, %zmm20
	vfmadd231ps	%zmm27, %zmm26, %zmm13
	vbroadcastss	4(%r8,%r9), %zmm25
	vbroadcastss	8(%r8,%r9), %zmm26
	vbroadcastss	(%r8,%r9), %zmm27
	vfmadd231ps	%zmm23, %zmm28, %zmm19
	vfmadd231ps	%zmm28, %zmm22, %zmm11
	vfmadd231ps	%zmm23, %zmm25, %zmm9
	vfmadd231ps	%zmm25, %zmm22, %zmm1
	vbroadcastss	12(%r8,%r9), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm10
	vfmadd231ps	%zmm26, %zmm22, %zmm2
	vbroadcastss	16(%r8,%r9), %zmm26
	vfmadd231ps	%zmm23, %zmm27, %zmm3
	vfmadd231ps	%zmm27, %zmm22, %zmm0
	vbroadcastss	40(%r8,%r9), %zmm27
	vfmadd231ps	%zmm23, %zmm25, %zmm12
	vfmadd231ps	%zmm25, %zmm22, %zmm4
	vbroadcastss	20(%r8,%r9), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm14
	vfmadd231ps	%zmm26, %zmm22, %zmm5
	vbroadcastss	24(%r8,%r9), %zmm26
	vfmadd231ps	%zmm23, %zmm27, %zmm21
	vfmadd231ps	%zmm22, %zmm27, %zmm15
	vfmadd231ps	%zmm23, %zmm25, %zmm16
	vfmadd231ps	%zmm25, %zmm22, %zmm6
	vbroadcastss	28(%r8,%r9), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm17
	vfmadd231ps	%zmm26, %zmm22, %zmm7
	vbroadcastss	36(%r8,%r9), %zmm26
	addq	%r9, %r8
	addq	%r9, %r8
	addq	$-2, %rcx
	vfmadd231ps	%zmm23, %zmm25, %zmm18
	vfmadd231ps	%zmm25, %zmm22, %zmm8
	vfmadd231ps	%zmm23, %zmm26, %zmm20
	vfmadd231ps	%zmm26, %zmm22, %zmm13
	jne	.LBB0_38
	testb	$1, %dl
	je	.LBB0_41
.LBB0_40:
	vbroadcastss	4(%r8), %zmm25
	vmovups	(%r11), %zmm23
	vmovups	64(%r11), %zmm24
	vbroadcastss	12(%r8), %zmm26
	vbroadcastss	(%r8), %zmm22
	vbroadcastss	20(%r8), %zmm27
	vfmadd231ps	%zmm23, %zmm25, %zmm9
	vfmadd231ps	%zmm25, %zmm24, %zmm1
	vbroadcastss	8(%r8), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm12
	vfmadd231ps	%zmm26, %zmm24, %zmm4
	vbroadcastss	28(%r8), %zmm26
	vfmadd231ps	%zmm23, %zmm22, %zmm3
	vfmadd231ps	%zmm22, %zmm24, %zmm0
	vfmadd231ps	%zmm23, %zmm27, %zmm16
	vfmadd231ps	%zmm27, %zmm24, %zmm6
	vfmadd231ps	%zmm23, %zmm25, %zmm10
	vfmadd231ps	%zmm25, %zmm24, %zmm2
	vbroadcastss	16(%r8), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm18
	vfmadd231ps	%zmm26, %zmm24, %zmm8
	vbroadcastss	36(%r8), %zmm26
	vfmadd231ps	%zmm23, %zmm25, %zmm14
	vfmadd231ps	%zmm25, %zmm24, %zmm5
	vbroadcastss	24(%r8), %zmm25
	vfmadd231ps	%zmm23, %zmm26, %zmm20
	vfmadd231ps	%zmm26, %zmm24, %zmm13
	vfmadd231ps	%zmm23, %zmm25, %zmm17
	vfmadd231ps	%zmm25, %zmm24, %zmm7
	vbroadcastss	32(%r8), %zmm25
	vfmadd231ps	%zmm23, %zmm25, %zmm19
	vfmadd231ps	%zmm25, %zmm24, %zmm11
	vbroadcastss	40(%r8), %zmm25
	vfmadd231ps	%zmm23, %zmm25, %zmm21
	vfmadd231ps	%zmm24, %zmm25, %zmm15
.LBB0_41:
	movabsq	$.LCPI0_0, %rcx
	leaq	(%rax,%r10,8), %r8
	vpbroadcastd	%esi, %zmm22
	leaq	(%r10,%r10,4), %rdx
	leaq	(%r10,%r10,8), %r9
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm23
	leaq	(%r10,%r10,2), %rcx
	subq	%r10, %r8
	vpcmpgtd	%zmm23, %zmm22, %k1
	vmovups	%zmm3, (%rax) {%k1}
	vmovups	%zmm9, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm9
	vmovups	%zmm10, (%rax,%r10,2) {%k1}
	vmovups	%zmm12, (%rax,%rcx) {%k1}
	vmovups	%zmm14, (%rax,%r10,4) {%k1}
	vmovups	%zmm16, (%rax,%rdx) {%k1}
	vmovups	%zmm17, (%rax,%rcx,2) {%k1}
	vmovups	%zmm18, (%r8) {%k1}
	vmovups	%zmm19, (%rax,%r10,8) {%k1}
	vmovups	%zmm20, (%rax,%r9) {%k1}
	vmovups	%zmm21, (%rax,%rdx,2) {%k1}
	vpcmpgtd	%zmm23, %zmm9, %k1
	vmovups	%zmm0, 64(%rax) {%k1}
	vmovups	%zmm1, 64(%r10,%rax) {%k1}
	vmovups	%zmm2, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	vmovups	%zmm5, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm6, 64(%rax,%rdx) {%k1}
	vmovups	%zmm7, 64(%rax,%rcx,2) {%k1}
	vmovups	%zmm8, 64(%r8) {%k1}
	vmovups	%zmm11, 64(%rax,%r10,8) {%k1}
	vmovups	%zmm13, 64(%rax,%r9) {%k1}
	vmovups	%zmm15, 64(%rax,%rdx,2) {%k1}
	jmp	.LBB0_94
.LBB0_47:
	movabsq	$9223372036854775806, %rcx
	vxorps	%xmm0, %xmm0, %xmm0
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm1, %xmm1, %xmm1
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm17, %xmm17, %xmm17
	vxorps	%xmm12, %xmm12, %xmm12
	andq	%rdx, %rcx
	.p2align	4
.LBB0_48:
	vbroadcastss	8(%r8), %zmm23
	vmovups	(%r11), %zmm21
	vmovups	64(%r11), %zmm22
	vbroadcastss	4(%r8), %zmm25
	vbroadcastss	12(%r8), %zmm24
	vbroadcastss	(%r8), %zmm20
	vmovups	128(%r11), %zmm19
	vmovups	192(%r11), %zmm18
	addq	$256, %r11
	vfmadd231ps	%zmm21, %zmm23, %zmm9
	vfmadd231ps	%zmm23, %zmm22, %zmm3
	vbroadcastss	16(%r8), %zmm23
	vfmadd231ps	%zmm21, %zmm25, %zmm8
	vfmadd231ps	%zmm25, %zmm22, %zmm1
	vbroadcastss	28(%r8), %zmm25
	vfmadd231ps	%zmm21, %zmm24, %zmm11
	vfmadd231ps	%zmm24, %zmm22, %zmm4
	vbroadcastss	20(%r8), %zmm24
	vfmadd231ps	%zmm21, %zmm20, %zmm2
	vfmadd231ps	%zmm20, %zmm22, %zmm0
	vfmadd231ps	%zmm21, %zmm23, %zmm13
	vfmadd231ps	%zmm23, %zmm22, %zmm5
	vbroadcastss	24(%r8), %zmm23
	vfmadd231ps	%zmm21, %zmm24, %zmm14
	vfmadd231ps	%zmm24, %zmm22, %zmm6
	vfmadd231ps	%zmm21, %zmm25, %zmm16
	vfmadd231ps	%zmm25, %zmm22, %zmm10
	vbroadcastss	(%r8,%r9), %zmm24
	vfmadd231ps	%zmm21, %zmm23, %zmm15
	vfmadd231ps	%zmm23, %zmm22, %zmm7
	vbroadcastss	32(%r8), %zmm23
	vfmadd231ps	%zmm19, %zmm24, %zmm2
	vfmadd231ps	%zmm24, %zmm18, %zmm0
	vbroadcastss	24(%r8,%r9), %zmm24
	vfmadd231ps	%zmm21, %zmm23, %zmm17
	vfmadd231ps	%zmm22, %zmm23, %zmm12
	vbroadcastss	4(%r8,%r9), %zmm21
	vbroadcastss	8(%r8,%r9), %zmm22
	vbroadcastss	32(%r8,%r9), %zmm23
	vfmadd231ps	%zmm19, %zmm24, %zmm15
	vfmadd231ps	%zmm24, %zmm18, %zmm7
	vfmadd231ps	%zmm19, %zmm21, %zmm8
	vfmadd231ps	%zmm21, %zmm18, %zmm1
	vbroadcastss	12(%r8,%r9), %zmm21
	vfmadd231ps	%zmm19, %zmm22, %zmm9
	vfmadd231ps	%zmm22, %zmm18, %zmm3
	vbroadcastss	16(%r8,%r9), %zmm22
	vfmadd231ps	%zmm19, %zmm23, %zmm17
	vfmadd231ps	%zmm18, %zmm23, %zmm12
	vfmadd231ps	%zmm19, %zmm21, %zmm11
	vfmadd231ps	%zmm21, %zmm18, %zmm4
	vbroadcastss	20(%r8,%r9), %zmm21
	vfmadd231ps	%zmm19, %zmm22, %zmm13
	vfmadd231ps	%zmm22, %zmm18, %zmm5
	vbroadcastss	28(%r8,%r9), %zmm22
	addq	%r9, %r8
	addq	%r9, %r8
	addq	$-2, %rcx
	vfmadd231ps	%zmm19, %zmm21, %zmm14
	vfmadd231ps	%zmm21, %zmm18, %zmm6
	vfmadd231ps	%zmm19, %zmm22, %zmm16
	vfmadd231ps	%zmm22, %zmm18, %zmm10
	jne	.LBB0_48
	testb	$1, %dl
	je	.LBB0_51
.LBB0_50:
	vbroadcastss	8(%r8), %zmm21
	vmovups	(%r11), %zmm18
	vmovups	64(%r11), %zmm19
	vbroadcastss	4(%r8), %zmm22
	vbroadcastss	(%r8), %zmm20
	vbroadcastss	12(%r8), %zmm23
	vfmadd231ps	%zmm18, %zmm21, %zmm9
	vfmadd231ps	%zmm21, %zmm19, %zmm3
	vbroadcastss	16(%r8), %zmm21
	vfmadd231ps	%zmm18, %zmm22, %zmm8
	vfmadd231ps	%zmm22, %zmm19, %zmm1
	vbroadcastss	20(%r8), %zmm22
	vfmadd231ps	%zmm18, %zmm20, %zmm2
	vfmadd231ps	%zmm20, %zmm19, %zmm0
	vfmadd231ps	%zmm18, %zmm23, %zmm11
	vfmadd231ps	%zmm23, %zmm19, %zmm4
	vfmadd231ps	%zmm18, %zmm21, %zmm13
	vfmadd231ps	%zmm21, %zmm19, %zmm5
	vbroadcastss	24(%r8), %zmm21
	vfmadd231ps	%zmm18, %zmm22, %zmm14
	vfmadd231ps	%zmm22, %zmm19, %zmm6
	vbroadcastss	28(%r8), %zmm22
	vfmadd231ps	%zmm18, %zmm21, %zmm15
	vfmadd231ps	%zmm21, %zmm19, %zmm7
	vbroadcastss	32(%r8), %zmm21
	vfmadd231ps	%zmm18, %zmm22, %zmm16
	vfmadd231ps	%zmm22, %zmm19, %zmm10
	vfmadd231ps	%zmm18, %zmm21, %zmm17
	vfmadd231ps	%zmm19, %zmm21, %zmm12
.LBB0_51:
	movabsq	$.LCPI0_0, %rcx
	leaq	(%rax,%r10,8), %r8
	vpbroadcastd	%esi, %zmm18
	leaq	(%r10,%r10,4), %rdx
	addl	$-16, %esi
	vmovdqa64	(%rcx), %zmm19
	leaq	(%r10,%r10,2), %rcx
	subq	%r10, %r8
	vpcmpgtd	%zmm19, %zmm18, %k1
	vmovups	%zmm2, (%rax) {%k1}
	vmovups	%zmm8, (%r10,%rax) {%k1}
	vpbroadcastd	%esi, %zmm8
	vmovups	%zmm9, (%rax,%r10,2) {%k1}
	vmovups	%zmm11, (%rax,%rcx) {%k1}
	vmovups	%zmm13, (%rax,%r10,4) {%k1}
	vmovups	%zmm14, (%rax,%rdx) {%k1}
	vmovups	%zmm15, (%rax,%rcx,2) {%k1}
	vmovups	%zmm16, (%r8) {%k1}
	vmovups	%zmm17, (%rax,%r10,8) {%k1}
	vpcmpgtd	%zmm19, %zmm8, %k1
	vmovups	%zmm0, 64(%rax) {%k1}
	vmovups	%zmm1, 64(%r10,%rax) {%k1}
	vmovups	%zmm3, 64(%rax,%r10,2) {%k1}
	vmovups	%zmm4, 64(%rax,%rcx) {%k1}
	vmovups	%zmm5, 64(%rax,%r10,4) {%k1}
	vmovups	%zmm6, 64(%rax,%rdx) {%k1}
	vmovups	%zmm7, 64(%rax,%rcx,2) {%k1}
	vmovups	%zmm10, 64(%r8) {%k1}
	vmovups	%zmm12, 64(%rax,%r10,8) {%k1}
.LBB0_94:
	popq	%rbx
	popq	%r12
	popq	%r13
	popq	%r14
	popq	%r15
	popq	%rbp
.LBB0_95:
	xorl	%eax, %eax
	movq	$0, (%rdi)
	vzeroupper
	retq
.Lfunc_end0:
	.size	_ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx, .Lfunc_end0-_ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx
	.section	.rodata,"a",@progbits
	.p2align	3, 0x0
.LJTI0_0:
	.quad	.LBB0_2
	.quad	.LBB0_4
	.quad	.LBB0_6
	.quad	.LBB0_8
	.quad	.LBB0_10
	.quad	.LBB0_12
	.quad	.LBB0_14
	.quad	.LBB0_16
	.quad	.LBB0_18
	.quad	.LBB0_20
	.quad	.LBB0_22
	.quad	.LBB0_24
	.quad	.LBB0_29
	.quad	.LBB0_26

	.section	.ltext,"axl",@progbits
	.globl	_ZN7cpython13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx
	.p2align	4
	.type	_ZN7cpython13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx,@function
_ZN7cpython13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%r15
	.cfi_def_cfa_offset 24
	pushq	%r14
	.cfi_def_cfa_offset 32
	pushq	%r13
	.cfi_def_cfa_offset 40
	pushq	%r12
	.cfi_def_cfa_offset 48
	pushq	%rbx
	.cfi_def_cfa_offset 56
	subq	$120, %rsp
	.cfi_def_cfa_offset 176
	.cfi_offset %rbx, -56
	.cfi_offset %r12, -48
	.cfi_offset %r13, -40
	.cfi_offset %r14, -32
	.cfi_offset %r15, -24
	.cfi_offset %rbp, -16
	leaq	48(%rsp), %r10
	movq	%rsi, %rdi
	xorl	%ebx, %ebx
	leaq	56(%rsp), %r11
	leaq	64(%rsp), %r14
	leaq	72(%rsp), %r15
	leaq	80(%rsp), %r12
	leaq	88(%rsp), %r13
	movabsq	$.const.tile, %rsi
	movabsq	$PyArg_UnpackTuple, %rbp
	leaq	104(%rsp), %r8
	leaq	96(%rsp), %r9
	movl	$8, %edx
	movl	$8, %ecx
	xorl	%eax, %eax
	pushq	%r10
	.cfi_adjust_cfa_offset 8
	pushq	%r11
	.cfi_adjust_cfa_offset 8
	pushq	%r14
	.cfi_adjust_cfa_offset 8
	pushq	%r15
	.cfi_adjust_cfa_offset 8
	pushq	%r12
	.cfi_adjust_cfa_offset 8
	pushq	%r13
	.cfi_adjust_cfa_offset 8
	callq	*%rbp
	addq	$48, %rsp
	.cfi_adjust_cfa_offset -48
	testl	%eax, %eax
	je	.LBB1_19
	movabsq	$_ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx, %rax
	cmpq	$0, (%rax)
	je	.LBB1_20
	movq	104(%rsp), %rdi
	movabsq	$PyNumber_Long, %r15
	callq	*%r15
	movabsq	$PyLong_AsLongLong, %r13
	movabsq	$Py_DecRef, %r12
	testq	%rax, %rax
	je	.LBB1_21
	movq	%rax, %rdi
	movq	%rax, %rbx
	callq	*%r13
	movq	%rbx, %rdi
	movq	%rax, %r14
	callq	*%r12
	movabsq	$PyErr_Occurred, %rbp
	callq	*%rbp
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_4:
	movq	96(%rsp), %rdi
	callq	*%r15
	testq	%rax, %rax
	je	.LBB1_23
	movq	%rax, %rdi
	movq	%rax, %rbx
	callq	*%r13
	movq	%rbx, %rdi
	movq	%rax, 40(%rsp)
	callq	*%r12
	callq	*%rbp
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_6:
	movq	88(%rsp), %rdi
	callq	*%r15
	testq	%rax, %rax
	je	.LBB1_25
	movq	%rax, %rdi
	movq	%rax, %rbx
	callq	*%r13
	movq	%rbx, %rdi
	movq	%rax, 32(%rsp)
	callq	*%r12
	callq	*%rbp
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_8:
	movq	80(%rsp), %rdi
	callq	*%r15
	testq	%rax, %rax
	je	.LBB1_27
	movq	%rax, %rdi
	movq	%rax, %rbx
	callq	*%r13
	movq	%rbx, %rdi
	movq	%rax, 24(%rsp)
	callq	*%r12
	callq	*%rbp
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_10:
	movq	72(%rsp), %rdi
	callq	*%r15
	testq	%rax, %rax
	je	.LBB1_29
	movq	%rax, %rdi
	movq	%rax, %rbx
	callq	*%r13
	movq	%rbx, %rdi
	movq	%rax, 16(%rsp)
	callq	*%r12
	callq	*%rbp
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_12:
	movq	64(%rsp), %rdi
	callq	*%r15
	testq	%rax, %rax
	je	.LBB1_31
	movq	%rax, %rdi
	movq	%rax, %rbx
	callq	*%r13
	movq	%rbx, %rdi
	movq	%rax, 8(%rsp)
	callq	*%r12
	callq	*%rbp
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_14:
	movq	56(%rsp), %rdi
	movq	%r12, %rbp
	movq	%r14, %r12
	callq	*%r15
	testq	%rax, %rax
	je	.LBB1_33
	movq	%rax, %rdi
	movq	%rax, %r14
	callq	*%r13
	movq	%r14, %rdi
	movq	%rax, %rbx
	callq	*%rbp
	movabsq	$PyErr_Occurred, %rax
	callq	*%rax
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_16:
	movq	48(%rsp), %rdi
	callq	*%r15
	testq	%rax, %rax
	je	.LBB1_35
	movq	%rax, %rdi
	movq	%rax, %r15
	callq	*%r13
	movq	%r15, %rdi
	movq	%rax, %r14
	callq	*%rbp
	movabsq	$PyErr_Occurred, %rax
	callq	*%rax
	testq	%rax, %rax
	jne	.LBB1_22
.LBB1_18:
	movabsq	$PyEval_SaveThread, %rax
	callq	*%rax
	movq	40(%rsp), %rcx
	movq	32(%rsp), %r8
	movq	24(%rsp), %r9
	movq	%rax, %r15
	movabsq	$_ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx, %rax
	leaq	112(%rsp), %rdi
	movq	%r12, %rdx
	pushq	%r14
	.cfi_adjust_cfa_offset 8
	pushq	%rbx
	.cfi_adjust_cfa_offset 8
	pushq	24(%rsp)
	.cfi_adjust_cfa_offset 8
	pushq	40(%rsp)
	.cfi_adjust_cfa_offset 8
	callq	*%rax
	addq	$32, %rsp
	.cfi_adjust_cfa_offset -32
	movabsq	$PyEval_RestoreThread, %rax
	movq	%r15, %rdi
	callq	*%rax
	movabsq	$_Py_NoneStruct, %rbx
	movabsq	$Py_IncRef, %rax
	movq	%rbx, %rdi
	callq	*%rax
.LBB1_19:
	movq	%rbx, %rax
	addq	$120, %rsp
	.cfi_def_cfa_offset 56
	popq	%rbx
	.cfi_def_cfa_offset 48
	popq	%r12
	.cfi_def_cfa_offset 40
	popq	%r13
	.cfi_def_cfa_offset 32
	popq	%r14
	.cfi_def_cfa_offset 24
	popq	%r15
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	retq
.LBB1_20:
	.cfi_def_cfa_offset 176
	movabsq	$PyExc_RuntimeError, %rdi
	movabsq	$".const.missing Environment: _ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	xorl	%ebx, %ebx
	jmp	.LBB1_19
.LBB1_21:
	xorl	%r14d, %r14d
	movabsq	$PyErr_Occurred, %rbp
	callq	*%rbp
	testq	%rax, %rax
	je	.LBB1_4
	jmp	.LBB1_22
.LBB1_23:
	movq	$0, 40(%rsp)
	callq	*%rbp
	testq	%rax, %rax
	je	.LBB1_6
	jmp	.LBB1_22
.LBB1_25:
	movq	$0, 32(%rsp)
	callq	*%rbp
	testq	%rax, %rax
	je	.LBB1_8
	jmp	.LBB1_22
.LBB1_27:
	movq	$0, 24(%rsp)
	callq	*%rbp
	testq	%rax, %rax
	je	.LBB1_10
	jmp	.LBB1_22
.LBB1_29:
	movq	$0, 16(%rsp)
	callq	*%rbp
	testq	%rax, %rax
	je	.LBB1_12
	jmp	.LBB1_22
.LBB1_31:
	movq	$0, 8(%rsp)
	callq	*%rbp
	testq	%rax, %rax
	je	.LBB1_14
	jmp	.LBB1_22
.LBB1_33:
	xorl	%ebx, %ebx
	movabsq	$PyErr_Occurred, %rax
	callq	*%rax
	testq	%rax, %rax
	je	.LBB1_16
	jmp	.LBB1_22
.LBB1_35:
	xorl	%r14d, %r14d
	movabsq	$PyErr_Occurred, %rax
	callq	*%rax
	testq	%rax, %rax
	je	.LBB1_18
.LBB1_22:
	xorl	%ebx, %ebx
	jmp	.LBB1_19
.Lfunc_end1:
	.size	_ZN7cpython13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx, .Lfunc_end1-_ZN7cpython13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx
	.cfi_endproc

	.globl	cfunc._ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx
	.p2align	4
	.type	cfunc._ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx,@function
cfunc._ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx:
	subq	$40, %rsp
	vmovaps	48(%rsp), %xmm0
	movq	%rcx, %rax
	movq	%rdx, %r10
	movq	%rsi, %rcx
	movq	%rdi, %rdx
	movabsq	$_ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx, %rsi
	leaq	32(%rsp), %rdi
	movq	$0, 32(%rsp)
	vmovups	%xmm0, 16(%rsp)
	movq	%r9, 8(%rsp)
	movq	%r8, (%rsp)
	movq	%r10, %r8
	movq	%rax, %r9
	callq	*%rsi
	movq	32(%rsp), %rax
	addq	$40, %rsp
	retq
.Lfunc_end2:
	.size	cfunc._ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx, .Lfunc_end2-cfunc._ZN13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx

	.type	.const.tile,@object
	.section	.lrodata,"al",@progbits
.const.tile:
	.asciz	"tile"
	.size	.const.tile, 5

	.type	_ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx,@object
	.comm	_ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx,8,8
	.type	".const.missing Environment: _ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx",@object
	.p2align	4, 0x0
".const.missing Environment: _ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx":
	.asciz	"missing Environment: _ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx"
	.size	".const.missing Environment: _ZN08NumbaEnv13_3cdynamic_3e4tileB2v1B40c8tJTIeFIjxB2IKSgI4CrvQClQZ6FcpCShpgEU0AExxxxxxxx", 111

	.section	".note.GNU-stack","",@progbits
