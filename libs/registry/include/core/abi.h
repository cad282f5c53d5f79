/* core/abi.h - the C contract between a host and a Core plugin (C99).
 *
 * A plugin is a shared library that exports ONE symbol, `core_plugin_query`.
 * It depends on no registry, no Python and no tensor framework, so that any
 * host (C, C++, Rust, Python through ctypes) can dlopen() it. It is never
 * dlclose()d.
 *
 * Compatibility: a plugin runs under a host when the major versions are equal
 * and plugin.abi_minor <= host minor. Structs only grow at their end and carry
 * `struct_size` where a host walks them, so a newer host reads an older plugin.
 */
#ifndef CORE_ABI_H_
#define CORE_ABI_H_
#include <stddef.h>
#include <stdint.h>

#ifndef CORE_ABI_MAJOR /* a test builds a wrong one */
#define CORE_ABI_MAJOR 1
#endif
#define CORE_ABI_MINOR 0

#define CORE_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* DLDeviceType */
enum core_device { CORE_CPU = 1, CORE_CUDA = 2, CORE_CUDA_HOST = 3, CORE_CUDA_MANAGED = 13 };

/* Layout-identical to DLTensor of DLPack 1.x; a DLTensor* may be passed here. */
typedef struct core_tensor {
  void* data;
  int32_t device_type, device_id; /* DLDevice */
  int32_t ndim;
  uint8_t dtype_code, dtype_bits; /* DLDataType */
  uint16_t dtype_lanes;
  int64_t* shape;
  int64_t* strides; /* in elements; NULL means C-contiguous */
  uint64_t byte_offset;
} core_tensor;

enum core_kind { CORE_NONE = 0, CORE_TENSOR = 1, CORE_INT = 2, CORE_FLOAT = 3, CORE_BOOL = 4, CORE_STR = 5 };

/* One argument of a call. CORE_NONE stands for an optional tensor left out. */
typedef struct core_value {
  int32_t kind, reserved;
  union {
    const core_tensor* t;
    int64_t i; /* CORE_INT and CORE_BOOL */
    double f;
    const char* s; /* UTF-8, NUL-terminated */
  } u;
} core_value;

/* `kind` is the name of a Python exception: ValueError, TypeError, BufferError,
 * MemoryError, RuntimeError, NotImplementedError. */
typedef struct core_error {
  char kind[32];
  char message[992];
} core_error;

enum core_arg_flags { CORE_ARG_OUT = 1, CORE_ARG_OPTIONAL = 2 };

typedef struct core_arg {
  const char* name;
  const char* shape; /* "N,3": symbols are equal across arguments; "*" is any size */
  int32_t kind;
  uint32_t flags;
  uint8_t dtype_code, dtype_bits; /* tensors only */
  int16_t ndim;                   /* tensors only */
  uint32_t reserved;
} core_arg;

/* One of the functions behind a name. All overloads have the same argument names. */
typedef struct core_overload {
  int32_t device_type;
  uint32_t reserved;
  const core_arg* args;
} core_overload;

typedef struct core_op {
  const char* name; /* "core_splatting.rasterize" */
  const char* doc;
  const char* paper; /* arXiv id or NULL */
  const core_overload* overloads;
  uint32_t num_args, num_overloads;
  /* 0 on success, else -1 and *err is filled (if not NULL). Never throws. Chooses the
   * overload by the tensors' device and dtype. `stream` is a cudaStream_t or NULL. */
  int32_t (*call)(const core_value* args, int32_t num_args, void* stream, core_error* err);
} core_op;

/* Services that the host lends to the plugin; a NULL member falls back to the plugin's own. */
typedef struct core_host {
  uint32_t struct_size;
  uint32_t num_threads; /* of parallel_for */
  /* Runs body(begin, end, ctx) over a partition of [0, n), each part at least `grain` long
   * but the last; returns when all parts are done. `body` never throws. */
  void (*parallel_for)(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* ctx);
} core_host;

typedef struct core_plugin {
  uint32_t struct_size; /* sizeof(core_plugin) of the plugin */
  uint16_t abi_major, abi_minor;
  const char* name; /* also the prefix of every operator's name */
  const char* version;
  const core_op* ops;
  uint32_t num_ops;
  uint32_t op_size; /* sizeof(core_op) of the plugin: the stride of `ops` */
  /* Lends `host` (which must outlive the plugin; NULL takes it back). May be NULL. */
  void (*attach)(const core_host* host);
} core_plugin;

/* The only exported symbol: const core_plugin* core_plugin_query(void). Never fails. */
typedef const core_plugin* (*core_plugin_query_fn)(void);

#ifdef __cplusplus
}
#endif
#endif
