/* by_name_c LIBRARY...: a C99 host. Loads plugins, lists their operators, and calls demo.fill, knowing nothing but core/abi.h. */
#define _POSIX_C_SOURCE 200809L
#include <core/abi.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static const core_op* fill;

static int load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  core_plugin_query_fn query;
  *(void**)&query = dlsym(library, "core_plugin_query");
  if (!query) {
    fprintf(stderr, "%s is not a Core plugin\n", path);
    return 1;
  }
  const core_plugin* p = query();
  if (p->abi_major != CORE_ABI_MAJOR || p->abi_minor > CORE_ABI_MINOR) {
    fprintf(stderr, "%s speaks Core ABI %d.%d\n", path, p->abi_major, p->abi_minor);
    return 1;
  }
  for (uint32_t i = 0; i < p->num_ops; ++i) {
    const core_op* op = (const core_op*)((const char*)p->ops + (size_t)i * p->op_size);
    printf("operator %s, %u arguments\n", op->name, op->num_args);
    if (!strcmp(op->name, "demo.fill")) fill = op;
  }
  return 0;
}

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i)
    if (load(argv[i])) return 1;
  if (!fill) return 1;

  double out[3] = {0, 0, 0};
  int64_t shape[1] = {3};
  core_tensor t = {out, CORE_CPU, 0, 1, 2, 64, 1, shape, NULL, 0};
  core_value values[2];
  memset(values, 0, sizeof values);
  values[0].kind = CORE_TENSOR;
  values[0].u.t = &t;
  values[1].kind = CORE_FLOAT;
  values[1].u.f = 2.5;
  core_error error;
  if (fill->call(values, 2, NULL, &error)) {
    fprintf(stderr, "%s: %s\n", error.kind, error.message);
    return 1;
  }
  printf("filled %g %g %g\n", out[0], out[1], out[2]);

  t.dtype_bits = 32;
  if (!fill->call(values, 2, NULL, &error)) return 1;
  printf("refused: %s: %s\n", error.kind, error.message);
  return 0;
}
