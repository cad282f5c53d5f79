/* A plugin in plain C99. Macros make it wrong in one way or another. */
#include <core/abi.h>
#include <stdio.h>
#include <string.h>

#ifdef NO_SYMBOL
int nothing_here(void) { return 0; }
#else
/* demo.fill(out[N], value): writes `value`, in parallel if the host lent its threads. */
static const core_host* host;

struct job {
  double* out;
  double value;
};
static void fill_part(int64_t begin, int64_t end, void* ctx) {
  const struct job* j = (const struct job*)ctx;
  for (int64_t i = begin; i < end; ++i) j->out[i] = j->value;
}
static int32_t refuse(core_error* err, const char* message) {
  if (err) {
    strcpy(err->kind, "ValueError");
    snprintf(err->message, sizeof err->message, "fill: %s", message);
  }
  return -1;
}
static int32_t fill(const core_value* args, int32_t n, void* stream, core_error* err) {
  (void)stream;
  if (n != 2 || args[0].kind != CORE_TENSOR || args[1].kind != CORE_FLOAT) return refuse(err, "takes a tensor and a float");
  const core_tensor* t = args[0].u.t;
  if (t->ndim != 1 || t->dtype_code != 2 || t->dtype_bits != 64) return refuse(err, "argument 'out' must be float64 of shape (N,)");
  struct job j = {(double*)t->data, args[1].u.f};
  if (host && host->parallel_for)
    host->parallel_for(t->shape[0], 1, fill_part, &j);
  else
    fill_part(0, t->shape[0], &j);
  return 0;
}

static const core_arg args[] = {{"out", "N", CORE_TENSOR, CORE_ARG_OUT, 2, 64, 1, 0}, {"value", "", CORE_FLOAT, 0, 0, 0, -1, 0}};
static const core_overload overloads[] = {{CORE_CPU, 0, args}};
static const core_op ops[] = {
    {OPERATOR, "Writes `value` to every element.", NULL, overloads, 2, 1, fill},
#ifdef SECOND
    {SECOND, "The same.", NULL, overloads, 2, 1, fill},
#endif
};
static void attach(const core_host* h) { host = h; }
static const core_plugin plugin = {sizeof(core_plugin),      CORE_ABI_MAJOR,  CORE_ABI_MINOR, PLUGIN, "1.0", ops,
                                   sizeof ops / sizeof *ops, sizeof(core_op), attach};

CORE_EXPORT const core_plugin* core_plugin_query(void) { return &plugin; }
#endif
