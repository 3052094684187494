"""Numbers of this package that were found by measuring, each with its unit and how it was found."""

from __future__ import annotations

#: Numbers in one stack of small gradients on a CPU: as many as make its calls cost little, and leave threads their
#: share. 200 matrices of 256 x 256 were tried in stacks of 2**18 to 2**22 numbers.
CPU_STACK = 2**20
#: The same on other devices: a launch worth making. Not measured.
DEVICE_STACK = 2**24
#: Numbers in a stack that one thread may step while others step others, each holding as much again.
SMALL_STACK = 2**22

#: Numbers that a step makes of one part of a matrix on a CPU: enough that its calls cost little beside the work, few
#: enough to be small temporaries beside a large matrix. Tried at 1024, 2048 and 4096 squared.
PART = 3 * 2**18
#: Numbers of a matrix below which parts are twice as large: it has few of them.
LARGE_MATRIX = 2**23
#: Numbers of a part for each thread below which side by side costs more than it gains.
LEAST_PART = 2**18

#: Numbers in one block of the temporary that holds an update: the cores' caches on a CPU, a launch worth making
#: elsewhere. The latter was not measured.
CPU_BLOCK = 2**18
DEVICE_BLOCK = 2**24

#: Numbers of a matrix up to which kernels step it as part of a stack, a copy: launches of its own would cost more. Not
#: measured.
SMALL_MEMBER = 2**20

#: Smallest numbers of rows or columns by which a matrix looks like a vocabulary's table.
VOCABULARY = 8192
