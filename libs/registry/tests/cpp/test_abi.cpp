// The layout of the C ABI is a promise.
#include <core/abi.h>
#include <core/test.hpp>

static_assert(sizeof(void*) == 8);
static_assert(sizeof(core_tensor) == 48 && offsetof(core_tensor, device_type) == 8 && offsetof(core_tensor, ndim) == 16 &&
              offsetof(core_tensor, dtype_code) == 20 && offsetof(core_tensor, dtype_lanes) == 22 && offsetof(core_tensor, shape) == 24 &&
              offsetof(core_tensor, strides) == 32 && offsetof(core_tensor, byte_offset) == 40);
static_assert(sizeof(core_value) == 16 && offsetof(core_value, u) == 8);
static_assert(sizeof(core_error) == 1024 && offsetof(core_error, message) == 32);
static_assert(sizeof(core_arg) == 32 && offsetof(core_arg, kind) == 16 && offsetof(core_arg, dtype_code) == 24 &&
              offsetof(core_arg, ndim) == 26);
static_assert(sizeof(core_overload) == 16 && offsetof(core_overload, args) == 8);
static_assert(sizeof(core_op) == 48 && offsetof(core_op, overloads) == 24 && offsetof(core_op, num_args) == 32 &&
              offsetof(core_op, call) == 40);
static_assert(sizeof(core_host) == 16 && offsetof(core_host, parallel_for) == 8);
static_assert(sizeof(core_plugin) == 48 && offsetof(core_plugin, abi_major) == 4 && offsetof(core_plugin, name) == 8 &&
              offsetof(core_plugin, ops) == 24 && offsetof(core_plugin, num_ops) == 32 && offsetof(core_plugin, attach) == 40);

CORE_TEST(versions) { CHECK(CORE_ABI_MAJOR == 1 && CORE_ABI_MINOR == 0); }
