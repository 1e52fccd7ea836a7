# Differences to t of all settings, in standard deviations of their seeds, against the share of t's
# all-reduces. Called by dev/runs/plot.sh with data, the settings' names, and patterns with their
# points; others are left out. A colour is a setting, a point a pattern; t is the line at 0.
array colours[7] = ['#0072B2', '#D55E00', '#009E73', '#E69F00', '#CC79A7', '#56B4E9', '#666666']
n = words(settings)
m = words(patterns)
name(i) = system("echo '".word(settings, i)."' | tr _ ' '")
set title "All settings: difference to t against all-reduces" font ',16'
set grid lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
set logscale x 2
set xrange [0.035:1.2]
set xtics ('1/24' 1.0/24, '1/12' 1.0/12, '1/8' 0.125, '1/6' 1.0/6, '1/4' 0.25, '1/2' 0.5, 'all' 1)
set xlabel "all-reduces per forward pass, of t's"
set ylabel 'difference to t ± its error (standard deviations of a loss over seeds)'
set arrow from graph 0, first 0 to graph 1, first 0 nohead lc rgb '#000000' dt 3
set label 't' at graph 0.005, first 0 offset 0, 0.5 tc rgb '#444444' font ',10'
set key outside right top reverse Left samplen 1
set bars 0.6
x(share, i) = share * 1.03 ** (i - (n + 1) / 2.0) # beside each other
shown(k) = strcol(4) eq word(patterns, k)
judged(k) = shown(k) && strcol(3) ne 'NaN' # one seed has no error
plot for [i=1:n] for [k=1:m] data index i-1 \
        using (judged(k) ? x($1, i) : NaN):2:(judged(k) ? $3 : 0) with yerrorbars pt -1 lw 1.5 \
        lc rgb colours[(i - 1) % 7 + 1] notitle, \
    for [i=1:n] for [k=1:m] data index i-1 using (shown(k) ? x($1, i) : NaN):2 with points \
        pt int(word(points, k)) ps 1.3 lw 1.5 lc rgb colours[(i - 1) % 7 + 1] notitle, \
    for [i=1:n] NaN with lines lw 8 lc rgb colours[(i - 1) % 7 + 1] title name(i), \
    for [k=1:m] NaN with points pt int(word(points, k)) ps 1.3 lw 1.5 lc rgb '#666666' \
        title word(patterns, k)
