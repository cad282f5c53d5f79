/* Seconds that `repeats` calls of an operator through the C ABI take; negative if one fails. */
#include <core/abi.h>
#include <time.h>

CORE_EXPORT double core_time_calls(const core_op* op, const core_value* args, int32_t num_args, int64_t repeats) {
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (int64_t i = 0; i < repeats; ++i)
    if (op->call(args, num_args, NULL, NULL)) return -1;
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}
